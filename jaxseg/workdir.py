"""A workdir explains itself: a trained model with all that its use needs to know.

A workdir holds

    metadata.json     model, classes, palette, normalisation, config, versions
    checkpoints/K/    the state after step K; K is 0 for weights from elsewhere
"""

import json
import os
import subprocess
from collections.abc import Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxseg.checkpoint import UNSCORED, Checkpoints, corrupt, stored_shapes
from jaxseg.data.palette import distinct_palette
from jaxseg.models import create_model
from jaxseg.models.segmenter import abstract_variables
from jaxseg.steps import TrainState, Variables
from jaxseg.weights import importer
from jaxseg.weights.mapping import flatten

METADATA = "metadata.json"


def load(
    workdir: str | os.PathLike, checkpoint: str | int = "best"
) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """Opens a trained model with nothing but its workdir.

    Args:
        workdir: of a training run, of imported weights, or made by `save`.
        checkpoint: "best" by validation mIoU, "latest", or a step.

    Returns:
        The linen module; its variables, `batch_stats` and `params`, averaged ones if
        the run averaged them; and the metadata: `class_names`, `palette`,
        `normalization`, `image_size`, `config`, `step`, ...

    Raises:
        ValueError: if the workdir or the checkpoint does not exist.
        CorruptCheckpointError: if files are damaged or missing.
    """
    metadata = read_metadata(workdir)
    step = find_step(workdir, checkpoint)
    model = create_model(**metadata["model"])
    path = Path(workdir).absolute() / "checkpoints" / str(step)
    averaged = any(name.startswith("ema/") for name in stored_shapes(path))
    params = "ema" if averaged else "params"
    like = abstract_variables(model, metadata["channels"])
    like = {params: like["params"], "batch_stats": like.get("batch_stats", {})}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            variables = checkpointer.restore(
                path / "state",
                args=ocp.args.PyTreeRestore(
                    item=target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise corrupt(path) from error
    variables["params"] = variables.pop(params)
    return model, variables, metadata | {"step": step}


def save(
    workdir: str | os.PathLike,
    variables: Variables,
    *,
    model: dict[str, Any],
    normalization: dict[str, Sequence[float]],
    class_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    **metadata: Any,
) -> None:
    """Makes a workdir of variables from anywhere; `load` and all commands open it.

    Args:
        workdir: folder to make; one that holds a run is left as it is.
        variables: `params` and, where the model has BatchNorm, `batch_stats`.
        model: keyword arguments of `create_model`.
        normalization: `mean` and `std` of the images, in 0..255.
        class_names: K names; numbers where there are none.
        palette: K colours, RGB; distinct ones where there are none.
        **metadata: what else there is to say, and other values for `image_size` (the
            images' own), `channels` (3), `data`, `train_split`, `val_split` and `eval`
            (a folder, whose place `jaxseg evaluate --data-root` gives).

    Raises:
        ValueError: if the folder holds a run, or the variables are not the model's.
    """
    workdir, num_classes = Path(workdir), model["num_classes"]
    if (workdir / METADATA).exists() or (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} holds a run already; give another folder.")
    state = {"params": {}, "batch_stats": {}} | dict(variables)
    content = {
        "model": model,
        "class_names": class_names or [str(k) for k in range(num_classes)],
        "palette": palette or distinct_palette(num_classes),
        "channels": 3,
        "normalization": normalization,
        "image_size": None,
        "data": {
            "dataset": "folder",
            "root": "",
            "prepared_dir": "~/.cache/jaxseg/data",
        },
        "train_split": "train",
        "val_split": "val",
        "eval": {"batch_size": 8, "absent": "exclude"},
        "config": None,
    } | metadata
    _check_variables(state, content)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, {"next_sample": 0})
    write_metadata(workdir, content)


def start(
    path: str | os.PathLike,
    state: TrainState,
    *,
    model: dict[str, Any],
    normalization: dict[str, Sequence[float]],
    head: str = "keep",
) -> tuple[TrainState, tuple[str, ...], tuple[str, ...]]:
    """Starts a state from another run, or from a file of weights.

    Of a workdir the best checkpoint is taken by the leaves' names: those that both
    models have are taken over and those that only the new one has stay as they are, so
    that FCN-16s starts from FCN-32s. In a file everything must have its place, but for
    `head="new"`.

    Args:
        path: a workdir or a file.
        state: before its first step.
        model: keyword arguments of `create_model` that the state is of.
        normalization: `mean` and `std` that the new run feeds its images with.
        head: "new" leaves layers whose shape depends on the classes as they are.

    Returns:
        The state; names of the leaves that were not found; names of those found that
        have no place in the new model.

    Raises:
        ValueError: if normalisations differ, a leaf of the same name has another shape,
            or no name is common to both.
    """
    ours = {"params": state.params, "batch_stats": state.batch_stats}
    target = flatten(ours)
    if Path(path).is_dir():
        _, variables, metadata = load(path)
        found, theirs = flatten(variables), metadata["normalization"]
        replaced = importer.class_dependent(model) if head == "new" else frozenset()
        unused = sorted((found.keys() - target.keys()) | (found.keys() & replaced))
        found = {name: found[name] for name in found.keys() - replaced}
        _check_shapes(path, found, target)
    else:
        converted = importer.start_from(path, model, ours, head=head)
        found, theirs = converted.variables, converted.mapping.normalization
        unused = converted.dropped
    if not found.keys() & target.keys():
        raise ValueError(f"{path} has no parameter of this model's names.")
    _check_normalization(path, theirs, normalization)

    def take(path, leaf):
        value = found.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if value is None:
            return leaf
        # From the host: what lies on one device goes to no other process's.
        return jax.device_put(np.asarray(value), leaf.sharding)

    started = jax.tree.map_with_path(take, ours)
    missing = sorted(target.keys() - found.keys())
    return state.replace(**started), tuple(missing), tuple(unused)


def normalization_of(
    path: str | os.PathLike, model: dict[str, Any]
) -> dict[str, Sequence[float]]:
    """The normalisation that the weights in a workdir or file were trained with.

    Args:
        path: of either.
        model: keyword arguments of `create_model` that are to start from it.
    """
    if Path(path).is_dir():
        return read_metadata(path)["normalization"]
    return importer.find_mapping(path, model).normalization


def find_step(workdir: str | os.PathLike, checkpoint: str | int = "best") -> int:
    """The step of the checkpoint that is asked for.

    Args:
        workdir: of a training run.
        checkpoint: "best" by validation mIoU (the latest, where none was evaluated),
            "latest", or a step.

    Returns:
        The step.

    Raises:
        ValueError: if there is no such checkpoint; the message lists those there are.
    """
    directory = Path(workdir) / "checkpoints"
    steps = sorted(
        int(path.name)
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.name.isdecimal()
    )
    if not steps:
        raise ValueError(f"{workdir} has no checkpoint; train into it first.")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        return max(steps, key=lambda step: (_score(directory / str(step)), step))
    if str(checkpoint).isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    raise ValueError(
        f"{workdir} has no checkpoint {checkpoint!r}; take best, latest or one of "
        f"{', '.join(map(str, steps))}."
    )


def write_metadata(workdir: str | os.PathLike, metadata: dict[str, Any]) -> None:
    """Writes what a workdir says of itself, with versions and commit, atomically."""
    path = Path(workdir) / METADATA
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(
        json.dumps(metadata | {"versions": _versions(), "git_commit": _commit()})
    )
    aside.replace(path)


def read_metadata(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_metadata` wrote; a ValueError where there is nothing."""
    path = Path(workdir) / METADATA
    if not path.is_file():
        raise ValueError(
            f"{workdir} is not a workdir of a training run: it has no {METADATA}."
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _score(path: Path) -> float:
    """Validation mIoU of a checkpoint."""
    file = path / "metrics" / "metrics"
    return json.loads(file.read_text())["miou"] if file.is_file() else UNSCORED


def _versions() -> dict[str, str]:
    names = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: packages.version(name) for name in names}


def _commit() -> str | None:
    """The commit of the source tree, where the package runs from one."""
    try:
        output = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def _check_variables(state, content) -> None:
    model = create_model(**content["model"])
    like = abstract_variables(model, content["channels"])
    given, wanted = flatten(state), flatten(like)
    wrong = sorted(given.keys() ^ wanted.keys())
    if wrong:
        raise ValueError(
            f"These are not the variables of {content['model']['name']}: "
            f"{', '.join(wrong[:6])} are in one of them alone."
        )
    _check_shapes("what is saved", given, wanted)


def _check_shapes(path, found, target) -> None:
    wrong = [
        f"{name}: {found[name].shape} there, {leaf.shape} here"
        for name, leaf in target.items()
        if name in found and found[name].shape != leaf.shape
    ]
    if wrong:
        raise ValueError(f"{path} does not fit this model. {'; '.join(wrong[:6])}.")


def _check_normalization(path, theirs, ours) -> None:
    theirs, ours = ({k: list(v) for k, v in n.items()} for n in (theirs, ours))
    if theirs != ours:
        raise ValueError(
            f"{path} was trained with the normalisation {theirs}, and this run has "
            f"{ours}; leave config.normalization out, or set it to the former."
        )
