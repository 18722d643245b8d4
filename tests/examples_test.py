"""The example of own components, outside the package, as its README runs it."""

import json
import shutil

import pytest

from tests.helpers import JAXSEG, ROOT, run_python


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a copy of the example and the workdir of a short run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "examples/own_encoder", folder / "own_encoder")
    result = run_python(
        folder,
        *JAXSEG,
        "train",
        "--config=own_encoder/config.py",
        "--workdir=run",
        "--config.model.kwargs.encoder_kwargs.width=2",
        "--config.data.prepared_dir=prepared",
        "--config.data.options.examples_per_split=4",
        "--config.train.batch_size=2",
        "--config.train.steps=2",
        "--config.eval.overlays=1",
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    "module", ["own_encoder/own_components.py", "own_encoder.own_components"]
)
def test_a_workdir_opens_with_the_module_imported(trained, module):
    """A path, or the name of a module in the current directory."""
    result = run_python(
        trained, *JAXSEG, "evaluate", "--workdir=run", "--import", module
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((trained / "run/report.json").read_text())
    assert set(report["iou"]) == {"background", "ellipse"}


def test_without_it_nothing_is_imported_and_the_error_says_what_to_add(trained):
    (trained / "own_encoder/own_components.py").rename(trained / "strided.py")
    try:
        result = run_python(trained, *JAXSEG, "evaluate", "--workdir=run")
    finally:
        (trained / "strided.py").rename(trained / "own_encoder/own_components.py")
    assert result.returncode == 1
    assert "Unknown encoder 'strided'" in result.stderr
    assert "add --import MODULE" in result.stderr


def test_the_metadata_name_nothing_that_could_be_imported(trained):
    assert "own_components" not in (trained / "run/metadata.json").read_text()


@pytest.mark.parametrize(
    ("module", "fragment"),
    [("not_there", "No module named"), ("broken.py", "ZeroDivisionError")],
)
def test_modules_that_cannot_be_imported(trained, module, fragment):
    (trained / "broken.py").write_text("1 / 0\n")
    result = run_python(
        trained, *JAXSEG, "evaluate", "--workdir=run", "--import", module
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --import {module}: ") and fragment in line
