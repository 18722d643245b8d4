"""Four devices give what one gives, however the work is shared among them."""

import functools

import pytest

from benchmarks import equality
from jaxseg.sharding import create_parallel

SIZE = 68, 40
"""68 rows divide by 4 devices at the first level, and by none at the others."""


@functools.cache
def _one_device(name):
    return equality.train(name, SIZE, create_parallel(data=1))


@pytest.mark.parametrize("layout", ["jit 2x2 fsdp", "jit 1x4"])
@pytest.mark.parametrize("name", equality.MODELS)
def test_four_devices_equal_one(name, layout):
    """Over backends alone: tests/steps_test.py."""
    got = equality.train(name, SIZE, create_parallel(**equality.LAYOUTS[layout]))
    for what, error in equality.differences(_one_device(name), got).items():
        assert error < 1e-6, (what, error)
