"""Holds the layers of docs/design.md: imports point only downward."""

import ast
from pathlib import Path

import jaxseg

LAYERS = (
    ("cli",),
    ("trainer", "report", "plan"),
    ("program",),
    ("settings", "jobs", "exporter"),
    ("workdir", "evaluator", "predictor", "tiled_predictor", "scorecard"),
    ("inference",),
    ("steps", "checkpoint", "logbook", "visualize", "heatmap"),
    ("losses", "metrics", "optimizer", "sharding"),
    ("cluster", "compilation", "interrupt"),
    ("weights",),
    ("models",),
    ("ops",),
)
"""Top first. `data` stands beside them: the upper layers use it, it uses none."""

RANK = {room: i for i, layer in enumerate(LAYERS) for room in layer}
ROOT = Path(jaxseg.__file__).parent


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports():
    """Pairs of a file and a room of jaxseg that it imports."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "jaxseg":
                for alias in node.names:
                    yield path.relative_to(ROOT), alias.name
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("jaxseg."):
                yield path.relative_to(ROOT), _room(node.module)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("jaxseg."):
                        yield path.relative_to(ROOT), _room(alias.name)


def _home(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_imports_point_downward():
    wrong = []
    for path, target in _imports():
        home = _home(path)
        if home in ("__init__", target):
            continue
        for room in {home, target} - {"data"}:
            assert room in RANK, f"{room} is in no layer"
        if target == "data":
            allowed = RANK[home] <= RANK["evaluator"]
        elif home == "data":
            allowed = False
        else:
            # `steps` serves its own layer: a checkpoint is one of a TrainState.
            allowed = RANK[home] < RANK[target] or (home, target) == (
                "checkpoint",
                "steps",
            )
        if not allowed:
            wrong.append(f"{path} imports {target}")
    assert not wrong


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
