"""Workdirs: trained models with everything that is needed to use them.

A workdir contains

    metadata.json     model, class names, palette, normalization, config, versions
    checkpoints/K/    the state after step K; K is 0 for imported weights
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxseg.checkpoints.manager import (
    CheckpointManager,
    CorruptCheckpointError,
    complete_steps,
    corrupt,
    disk_bytes,
    stored_shapes,
    validation_miou,
)
from jaxseg.data.palette import distinct_palette
from jaxseg.metadata import MetadataError, RunMetadata
from jaxseg.models import create_model
from jaxseg.models.variables import (
    CALLS_PER_ARRAY,
    MIN_CALLS,
    Variables,
    abstract_variables,
    limited_calls,
)
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.classes import are_names, check_max_classes, first_difference
from jaxseg.utils.files import write_atomically
from jaxseg.utils.json_file import read_json
from jaxseg.utils.trees import flatten, replace_leaves
from jaxseg.weights import importer
from jaxseg.weights.mapping import WeightsError
from jaxseg.weights.surgery import transfer
from jaxseg.weights.untrusted import allowance
from jaxseg.weights.values import check_values

METADATA = "metadata.json"


def load(
    workdir: str | os.PathLike, checkpoint: str | int = "best"
) -> tuple[nn.Module, Variables, RunMetadata]:
    """Loads a trained model from its workdir.

    Args:
        workdir: folder of a training run, of imported weights, or written by `save`.
        checkpoint: "best" by validation mIoU, "latest", or a step.

    Returns:
        The linen module; its variables `params`, averaged if the run averages them, and
        `batch_stats`; and its `RunMetadata`, with the step of the checkpoint.

    Raises:
        ValueError: if the workdir or the checkpoint does not exist.
        MetadataError: if the metadata is damaged or of a newer version, or its model
            cannot be built.
        CorruptCheckpointError: if files are damaged or missing, or do not belong to the
            model.
        WeightsError: if weights are NaN or infinite, or variances negative.
    """
    metadata = read_metadata(workdir)
    step = find_step(workdir, checkpoint)
    path = Path(workdir).absolute() / "checkpoints" / str(step)
    size = disk_bytes(path)
    stored = stored_shapes(path)
    try:
        with limited_calls(CALLS_PER_ARRAY * len(stored) + MIN_CALLS):
            model = create_model(**metadata.model)
            like = abstract_variables(model, metadata.channels)
    except Exception as error:  # arguments of another type raise many kinds
        raise MetadataError(
            f"The model in {Path(workdir) / METADATA} cannot be built: {error}"
        ) from error
    params = "ema" if any(name.startswith("ema/") for name in stored) else "params"
    like = {params: like["params"], "batch_stats": like.get("batch_stats", {})}
    _check_stored(path, stored, like, size)
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
        raise corrupt(path, error) from error
    check_values(flatten(variables), path)
    variables["params"] = variables.pop(params)
    return model, variables, metadata.replace(step=step)


def save(
    workdir: str | os.PathLike,
    variables: Variables,
    *,
    model: Mapping[str, Any],
    normalization: Normalization | Mapping[str, Sequence[float]],
    class_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    **fields: Any,
) -> None:
    """Saves a model as a workdir, for `load` and the commands of `jaxseg`.

    Args:
        workdir: folder to create; it must not contain a run.
        variables: `params`, and `batch_stats` if the model has them.
        model: keyword arguments of `create_model`.
        normalization: normalization of the images, or its `mean` and `std`.
        class_names: K names; by default the class indices.
        palette: K RGB colors; by default distinct ones.
        **fields: other fields of `RunMetadata`.

    Raises:
        ValueError: if the folder contains a run, or the variables do not match the
            model, are not finite, or are negative variances.
        MetadataError: if a field of the metadata has an invalid value.
    """
    workdir, num_classes = Path(workdir), model["num_classes"]
    check_max_classes(num_classes)
    if (workdir / METADATA).exists() or (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} already contains a run; use another folder.")
    if not isinstance(normalization, Normalization):
        mean, std = normalization["mean"], normalization["std"]
        normalization = Normalization(tuple(mean), tuple(std))
    colors = distinct_palette(num_classes) if palette is None else palette
    names = map(str, range(num_classes)) if class_names is None else class_names
    metadata = RunMetadata(
        model=model,
        class_names=tuple(names),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in colors),
        normalization=normalization,
        **fields,
    )
    state = {"params": {}, "batch_stats": {}} | dict(variables)
    _check_variables(state, metadata)
    with CheckpointManager(workdir) as checkpoints:
        checkpoints.save(0, state, {"next_sample": 0})
    write_metadata(workdir, metadata)


class NormalizationMismatchError(ValueError):
    """Pretrained weights were trained with a different normalization of the images."""


class ClassNamesMismatchError(ValueError):
    """Weights were trained for other classes, or for classes in another order."""


class PretrainedWeights:
    """Pretrained weights of another run, or of a file, to initialize a model from.

    For a workdir, arrays of the best checkpoint are matched by name: those of both
    models are copied, and those of the new model only keep their initial values, so that
    FCN-16s can be fine-tuned from FCN-32s. Every array of a file must match, except with
    `head="new"`. A file is read once, when it is first needed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        model: Mapping[str, Any],
        head: str = "keep",
        class_names: Sequence[str] = (),
    ):
        """Stores the arguments; reads nothing yet.

        Args:
            path: a workdir or a weight file.
            model: keyword arguments of `create_model` of the model to initialize.
            head: "keep", or "new" to keep the initial values of layers that depend on
                the number of classes.
            class_names: K names of the classes of the new run, to be compared with those
                of a workdir; empty if they are not known.

        Raises:
            ValueError: if `head` is neither "keep" nor "new".
        """
        importer.check_head(head)
        self.path = Path(path)
        self._model = model
        self._head = head
        self._class_names = class_names

    @cached_property
    def _fitted(self) -> importer.FittedFile:
        return importer.read_fitting(self.path, self._model)

    @property
    def normalization(self) -> Normalization:
        """The normalization that the weights were trained with."""
        if self.path.is_dir():
            return read_metadata(self.path).normalization
        return self._fitted.mapping.normalization

    def initialize(
        self, variables: Variables, normalization: Normalization
    ) -> tuple[Variables, tuple[str, ...], tuple[str, ...]]:
        """Copies the weights into a model's variables.

        Args:
            variables: initial `params` and `batch_stats`.
            normalization: normalization of the images in the new run.

        Returns:
            The variables; the names of arrays that were not found; and the names of
            pretrained arrays that were not used.

        Raises:
            ValueError: if an array of the same name has another shape, or the models
                have no name in common.
            NormalizationMismatchError: if the normalizations differ.
            ClassNamesMismatchError: if the classes have other names, or another order,
                and the layers that depend on their number are copied.
        """
        found, missing, unused = self._read(variables)
        if not found:
            raise ValueError(
                f"{self.path} and this model have no parameter names in common; use "
                "weights of the same kind of model."
            )
        if self.normalization != normalization:
            raise NormalizationMismatchError(
                f"{self.path} was trained with {self.normalization}, and this run uses "
                f"{normalization}."
            )
        # From the host, because device arrays cannot move to other processes; in the
        # same order in all processes, which place the arrays together.
        placed = {
            name: jax.device_put(np.asarray(found[name]), leaf.sharding)
            for name, leaf in flatten(variables).items()
            if name in found
        }
        return replace_leaves(variables, placed), missing, unused

    def _read(
        self, variables: Variables
    ) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
        """Arrays by name, names of missing variables, and names of unused arrays."""
        if not self.path.is_dir():
            converted = self._fitted.convert(variables, head=self._head)
            return converted.variables, converted.new, converted.dropped
        _, stored, metadata = load(self.path)
        head = importer.class_dependent(self._model)
        new = head if self._head == "new" else ()
        try:
            result = transfer(stored, variables, tuple(new))
        except WeightsError as error:
            raise WeightsError(
                f"{self.path} does not fit this model: {error}"
            ) from error
        found = flatten(result.variables)
        for name in result.new:
            del found[name]
        if head & {*found}:
            self._check_names(metadata.class_names)
        return found, result.new, result.dropped

    def _check_names(self, names: Sequence[str]) -> None:
        ours = self._class_names
        difference = first_difference(names, ours)
        # Imported weights and data without a description have only numbers.
        if are_names(names) and are_names(ours) and difference is not None:
            raise ClassNamesMismatchError(
                f"{self.path} was trained for other classes than those of this run: "
                f"{difference}."
            )


def find_step(workdir: str | os.PathLike, checkpoint: str | int = "best") -> int:
    """Finds the step of a checkpoint.

    Args:
        workdir: folder of a training run.
        checkpoint: "best" by validation mIoU (the latest if none was evaluated),
            "latest", or a step.

    Returns:
        The step.

    Raises:
        ValueError: if there is no such checkpoint; the message lists the existing ones.
    """
    directory = Path(workdir) / "checkpoints"
    steps = complete_steps(directory)
    if not steps:
        raise ValueError(f"{workdir} has no checkpoint; train with this workdir first.")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        return max(
            steps, key=lambda step: (validation_miou(directory / str(step)), step)
        )
    if str(checkpoint).isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    raise ValueError(
        f"{workdir} has no checkpoint {checkpoint!r}; use best, latest or one of "
        f"{', '.join(map(str, steps))}."
    )


def write_metadata(workdir: str | os.PathLike, metadata: RunMetadata) -> None:
    """Writes the metadata of a workdir, with versions and commit, atomically."""
    path = Path(workdir) / METADATA
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = metadata.replace(versions=_versions(), git_commit=_commit())
    write_atomically(path, json.dumps(metadata.to_json()))


def read_metadata(workdir: str | os.PathLike) -> RunMetadata:
    """Reads the metadata of a workdir, of this or an older version.

    Raises:
        ValueError: if the folder is not a workdir.
        MetadataError: if the file is damaged or of a newer version.
    """
    path = Path(workdir) / METADATA
    if not path.is_file():
        raise ValueError(
            f"{workdir} is not the workdir of a training run: it has no {METADATA}."
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise MetadataError(str(error)) from error
    return RunMetadata.from_json(content, str(path))


def _check_stored(
    path: Path, stored: Mapping[str, tuple[int, ...]], like: Any, size: int
) -> None:
    """Checks a checkpoint against its model, before memory for it is allocated."""
    wanted = flatten(like)
    for name, leaf in wanted.items():
        if stored.get(name) != leaf.shape:
            raise CorruptCheckpointError(
                f"The checkpoint {path} does not belong to the model in {METADATA}: "
                f"{name} is {stored.get(name, 'missing')}, and must be {leaf.shape}."
            )
    if sum(leaf.size * leaf.dtype.itemsize for leaf in wanted.values()) > allowance(
        size
    ):
        raise CorruptCheckpointError(
            f"The checkpoint {path} declares far more numbers than its {size:,} bytes "
            "can hold; it is damaged."
        )


def _versions() -> dict[str, str]:
    names = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: packages.version(name) for name in names}


def _commit() -> str | None:
    """The git commit of the package's source tree, if it is one."""
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


def _check_variables(state: Variables, metadata: RunMetadata) -> None:
    model = create_model(**metadata.model)
    like = abstract_variables(model, metadata.channels)
    given, wanted = flatten(state), flatten(like)
    wrong = sorted(given.keys() ^ wanted.keys())
    if wrong:
        raise ValueError(
            f"The variables do not match {metadata.model_name}: "
            f"{', '.join(wrong[:6])} {'is' if len(wrong) == 1 else 'are'} missing or "
            "unknown."
        )
    transfer(state, like)  # raises an error for a wrong shape
    check_values(given, "the model to save")
