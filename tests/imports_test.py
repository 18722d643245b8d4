"""Holds the layers of docs/design.md: imports point only downward."""

import ast
from pathlib import Path

import jaxseg

BOTTOM = frozenset({"utils"})
DATA = BOTTOM | {"data"}
MODELS = BOTTOM | {"ops", "metadata", "models"}

ALLOWED = {
    "utils": frozenset(),
    "data": BOTTOM,
    "losses": BOTTOM,
    "ops": BOTTOM,
    "metrics": BOTTOM | {"ops"},
    "parallel": BOTTOM | {"ops"},
    "metadata": BOTTOM | {"ops"},
    "models": MODELS,
    "weights": MODELS | DATA,
    "visualization": MODELS | DATA | {"metrics"},
    "checkpoints": MODELS | DATA | {"parallel", "weights"},
    "inference": MODELS | DATA | {"metrics", "parallel", "visualization"},
}
"""What each package may import from the others."""
ALLOWED["training"] = frozenset(ALLOWED)
ALLOWED["plan"] = frozenset(ALLOWED)
ALLOWED["cli"] = frozenset(ALLOWED)

ROOT = Path(jaxseg.__file__).parent


def _package(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _imports():
    """Pairs of a file and a package of jaxseg that it imports."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "jaxseg":
                for alias in node.names:
                    yield path.relative_to(ROOT), alias.name
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("jaxseg."):
                yield path.relative_to(ROOT), _package(node.module)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("jaxseg."):
                        yield path.relative_to(ROOT), _package(alias.name)


def test_imports_point_downward():
    wrong = []
    for path, target in _imports():
        home = path.parts[0].removesuffix(".py")
        if home not in ("__init__", target) and target not in ALLOWED[home]:
            wrong.append(f"{path} imports {target}")
    assert not wrong


def test_every_package_has_its_place():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages | {"metadata"} == set(ALLOWED)


def test_data_knows_neither_jax_nor_tensorflow():
    for path in (ROOT / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in ("jax", "flax", "tensorflow"), path
                assert not name.startswith("jaxseg.utils.trees"), path
