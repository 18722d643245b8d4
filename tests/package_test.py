"""What the package promises before anything is used: a light import, on any system."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import jaxseg

ROOT = Path(jaxseg.__file__).parent
HEAVY = (
    "PIL",
    "cv2",
    "grain",
    "orbax",
    "scipy",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
)
POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios"}


def run_python(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.check_output([sys.executable, "-c", code], text=True)


@pytest.mark.parametrize(
    "code",
    ["import jaxseg", "import jaxseg; jaxseg.create_model('segnet', num_classes=2)"],
)
def test_the_import_is_light(code):
    loaded = run_python(f"import sys; {code}; print(*sys.modules)").split()
    assert "jaxseg" in loaded
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


def test_importing_everything_leaves_opencv_and_jax_alone():
    code = """
import cv2, importlib, jax, logging, pkgutil, signal
def state():
    return (
        cv2.getNumThreads(),
        dict(jax.config.values),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )
before = state()
import jaxseg
for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
    importlib.import_module(module.name)
print(state() == before)
"""
    assert run_python(code).split()[-1] == "True"


def test_public_names_are_there():
    assert set(jaxseg.__all__) <= set(dir(jaxseg))
    for name in jaxseg.__all__:
        assert callable(getattr(jaxseg, name))
    assert jaxseg.create_model is importlib.import_module("jaxseg.models").create_model
    assert jaxseg.metadata.RunMetadata.__module__ == "jaxseg.metadata"
    assert jaxseg.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        jaxseg.lode  # noqa: B018


def test_nothing_needs_a_posix_system():
    """A module that only Unix has may be imported in a `try`, not at the top."""
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not POSIX_ONLY & set(names), path


def test_the_minimum_versions_are_those_that_are_tested():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    declared = dict(text.split(">=") for text in project["dependencies"])
    lines = (ROOT.parent / ".ci" / "minimums.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert declared.keys() == tested.keys()
    for name, version in declared.items():
        assert Version(tested[name]) == Version(version), name
