"""What the tests of runs share."""

import pytest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for prepared data, which the runs of a file share."""
    return tmp_path_factory.mktemp("prepared")
