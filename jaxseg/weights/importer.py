"""Loading the weights of another library, or exported by jaxseg, into a model."""

import inspect
import json
import os
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxseg.metadata import RunMetadata
from jaxseg.models import create_model
from jaxseg.models.classifier import create_classifier
from jaxseg.models.registry import find_builder
from jaxseg.models.variables import (
    CALLS_PER_ARRAY,
    MIN_CALLS,
    abstract_variables,
    initial_variables,
    limited_calls,
)
from jaxseg.utils.json_file import parse_json
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights import caffe, files, pytorch_fcn, smp, torchvision
from jaxseg.weights.mapping import (
    Converted,
    Mapping,
    Source,
    Tensors,
    WeightsError,
    convert,
    match_fraction,
)
from jaxseg.weights.values import check_values

FAMILIES = (torchvision, pytorch_fcn, smp, caffe)
CLASSIFIER = "classifier"
"""Model name for a classifier: an encoder with its published head."""

EXPORT = "jaxseg"
"""Key of the metadata in the header of a file written by `export_weights`."""

HEADS = ("keep", "new")
"""What to do with the layers that depend on the classes."""


@dataclass(frozen=True)
class Imported:
    """A model with the weights of a file.

    Attributes:
        model: keyword arguments of `create_model`.
        variables: `params` and `batch_stats`.
        metadata: of the workdir that the file was exported from; None for files of
            other libraries.
        converted: the variables from the file, and the names of all others.
    """

    model: dict[str, Any]
    variables: dict[str, Any]
    metadata: RunMetadata | None
    converted: Converted


@dataclass(frozen=True)
class FittedFile:
    """The content of a weight file, with the mapping that fits it best.

    Attributes:
        path: of the file.
        tensors: of the file, by name.
        mapping: sources of the model's variables among them.
        model: keyword arguments of `create_model`, including those that the file needs.
    """

    path: str | os.PathLike
    tensors: Tensors
    mapping: Mapping
    model: dict[str, Any]

    def convert(self, variables: Any, *, head: str = "keep") -> Converted:
        """Converts the file to the variables of an existing model.

        Args:
            variables: of the model, concrete or abstract.
            head: "keep" or "new", see `import_weights`.

        Returns:
            The variables from the file, by path, and the names of all others.

        Raises:
            WeightsError: if the file does not fit, or has NaN, infinities or negative
                variances; names all such variables and tensors.
        """
        check_head(head)
        replaced = class_dependent(self.model) if head == "new" else None
        converted = convert(self.tensors, variables, self.mapping, replaced=replaced)
        check_values(converted.variables, self.path)
        return converted


def import_weights(
    path: str | os.PathLike,
    model: MappingType[str, Any] | None = None,
    *,
    head: str = "keep",
    seed: int = 0,
) -> Imported:
    """Reads a weight file, and creates the variables of a model from it.

    Args:
        path: .pth, .pt, .safetensors, .npz or .caffemodel.
        model: keyword arguments of `create_model`. Without `num_classes`, the number of
            classes is read from the file. Further arguments that the file needs, such
            as FCN's released geometry, are added. For a classifier: {"name":
            "classifier", "encoder": ...}. None for a file exported by jaxseg, which
            contains its model.
        head: "keep" loads all variables, which must all be in the file; "new"
            initializes the layers that depend on the classes, and variables that such
            files do not contain.
        seed: random seed for the variables to initialize.

    Returns:
        The model's arguments and variables.

    Raises:
        WeightsError: if the file cannot be read or does not fit; names all variables
            and tensors.
    """
    metadata = _exported(path)
    if model is None:
        if metadata is None:
            raise WeightsError(
                f"{path} does not contain the name of its model; pass the model."
            )
        model = metadata.model
    channels = 3 if metadata is None else metadata.channels
    fitted = read_fitting(path, model)
    arguments = fitted.model
    like = abstract_variables(build(arguments), channels)
    converted = fitted.convert(like, head=head)
    leaves: dict[str, Any] = converted.variables
    if converted.new:
        leaves = leaves | _initialize(arguments, converted.new, seed, channels)
    variables = {"params": {}, "batch_stats": {}} | unflatten(leaves)
    return Imported(arguments, variables, metadata, converted)


def read_fitting(path: str | os.PathLike, model: MappingType[str, Any]) -> FittedFile:
    """Reads a weight file, and finds the mapping that fits it best.

    Args:
        path: see `import_weights`.
        model: keyword arguments of `create_model`, see `import_weights`.

    Returns:
        The tensors of the file, the mapping, and the completed model.

    Raises:
        WeightsError: if the file cannot be read, or no mapping is known.
    """
    return _fit(path, files.read(path), model)


def export_weights(
    path: str | os.PathLike, variables: Any, metadata: RunMetadata
) -> None:
    """Writes a model to a safetensors file for `import_weights`.

    Args:
        path: of the file.
        variables: `params` and `batch_stats`.
        metadata: of the workdir.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    files.write_safetensors(path, tensors, {EXPORT: json.dumps(metadata.to_json())})


def build(model: MappingType[str, Any]) -> nn.Module:
    """Creates a model or a classifier from keyword arguments."""
    if model["name"] != CLASSIFIER:
        return create_model(**model)
    arguments = {k: v for k, v in model.items() if k != "name"}
    return create_classifier(arguments.pop("encoder"), **arguments)


def class_dependent(model: MappingType[str, Any]) -> frozenset[str]:
    """Paths of the variables whose shape depends on the number of classes.

    Args:
        model: keyword arguments of `create_model`.

    Returns:
        The paths, such as "params/head/kernel".
    """
    one, other = (
        flatten(_abstract({**model, "num_classes": number})) for number in (2, 3)
    )
    return frozenset(name for name in one if one[name].shape != other[name].shape)


def check_head(head: str) -> None:
    """Raises a WeightsError unless `head` is one of `HEADS`."""
    if head not in HEADS:
        raise WeightsError(f'head is {head!r}; it must be "keep" or "new".')


def _abstract(model: MappingType[str, Any]) -> Any:
    return abstract_variables(build(model))


def _initialize(
    model: MappingType[str, Any], names: tuple[str, ...], seed: int, channels: int
) -> dict[str, jax.Array]:
    """Initial values of some of a model's variables; the others are not computed."""

    @jax.jit
    def initialize():
        module = build(model)
        leaves = flatten(initial_variables(module, jax.random.key(seed), channels))
        return {name: leaves[name] for name in names}

    return initialize()


def _exported(path: str | os.PathLike) -> RunMetadata | None:
    """The metadata of a file exported by jaxseg; None for other files."""
    header = files.read_metadata(path)
    if EXPORT not in header:
        return None
    source = f"the header of {path}"
    try:
        return RunMetadata.from_json(parse_json(header[EXPORT], source), source)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _fit(
    path: str | os.PathLike, tensors: Tensors, model: MappingType[str, Any]
) -> FittedFile:
    """The mapping that fits best, with the tensors and the model's arguments."""
    fits = []
    for mapping in _mappings(path, tensors, model):
        arguments = {"num_classes": None, **mapping.kwargs, **model}
        # Names do not depend on the number of classes.
        arguments_of_one = {**arguments, "num_classes": arguments["num_classes"] or 1}
        try:
            with limited_calls(CALLS_PER_ARRAY * len(tensors) + MIN_CALLS):
                like = _abstract(arguments_of_one)
        except Exception as error:  # arguments of another type raise many kinds
            raise WeightsError(
                f"The model for {path} cannot be built: {error}"
            ) from error
        fits += [
            (match_fraction(given, mapping, like), given, mapping, arguments)
            for given in _unwrapped(tensors)
        ]
    _, tensors, mapping, arguments = max(fits, key=lambda fit: fit[0])
    if arguments["num_classes"] is None and mapping.classes in tensors:
        arguments["num_classes"] = len(tensors[mapping.classes])
    if arguments["num_classes"] is None:
        raise WeightsError(
            f"{path} does not contain the number of classes; pass num_classes, and a "
            "new head if the file contains a classifier."
        )
    return FittedFile(path, tensors, mapping, arguments)


def _unwrapped(tensors: Tensors) -> list[Tensors]:
    """The tensors, with and without common prefixes of their names, such as "model."."""
    found = [tensors]
    while len({name.partition(".")[0] for name in found[-1]}) == 1 and all(
        "." in name for name in found[-1]
    ):
        found.append({name.partition(".")[2]: x for name, x in found[-1].items()})
    return found


def _mappings(path, tensors: Tensors, model: MappingType[str, Any]) -> list[Mapping]:
    exported = _exported(path)
    if exported is not None:
        name = f"{path}, exported by jaxseg"
        normalization = exported.normalization
        own = {name: Source((name,)) for name in tensors}
        return [Mapping(name, lambda path, shape: own.get(path), normalization)]
    completed = {"encoder": _default_encoder(model["name"]), **model}
    mappings = [m for family in FAMILIES for m in family.mappings(completed)]
    if not mappings:
        raise WeightsError(
            f"No weights of other libraries are known for {model['name']} with the "
            f"encoder {completed['encoder']!r}; only files exported by jaxseg can be "
            "loaded."
        )
    return mappings


def _default_encoder(name: str) -> str | None:
    """The default encoder of a model; None if the model has no argument `encoder`."""
    if name == CLASSIFIER:
        return None
    parameter = inspect.signature(find_builder(name)).parameters.get("encoder")
    return parameter.default if parameter else None
