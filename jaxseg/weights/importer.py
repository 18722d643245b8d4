"""A file of another library, or of our own export, into the variables of a model."""

import inspect
import json
import os
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxseg.metadata import MetadataError, RunMetadata
from jaxseg.models import create_model
from jaxseg.models.classifier import create_classifier
from jaxseg.models.registry import MODELS
from jaxseg.models.variables import abstract_variables, initial_variables
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

FAMILIES = (torchvision, pytorch_fcn, smp, caffe)
CLASSIFIER = "classifier"
"""In a model's place: an encoder with the head that it was published with."""

EXPORT = "jaxseg"
"""Key of the metadata in the header of a file that `export_weights` wrote."""


@dataclass(frozen=True)
class Imported:
    """A model with the weights of a file.

    Attributes:
        model: keyword arguments of `create_model`.
        variables: `params` and `batch_stats`.
        metadata: of the workdir that a file of our own was exported from; None for
            others.
        converted: what came from the file, what is new and what was left out.
    """

    model: dict[str, Any]
    variables: dict[str, Any]
    metadata: RunMetadata | None
    converted: Converted


@dataclass(frozen=True)
class FittedFile:
    """The content of a file of weights, with the mapping that fits it best.

    Attributes:
        tensors: of the file, by name.
        mapping: where each variable of the model is among them.
        model: keyword arguments of `create_model`, with what the file adds to them.
    """

    tensors: Tensors
    mapping: Mapping
    model: dict[str, Any]

    def convert(self, variables: Any, *, head: str = "keep") -> Converted:
        """The variables of a model that exists already, as far as the file has them.

        Args:
            variables: of the model, concrete or abstract.
            head: as in `import_weights`.

        Returns:
            The leaves that the file gives, by path, and the names of all others.

        Raises:
            WeightsError: if the file does not fit; with all names.
        """
        replaced = _replaced(head, self.model)
        return convert(self.tensors, variables, self.mapping, replaced=replaced)


def import_weights(
    path: str | os.PathLike,
    model: MappingType[str, Any] | None = None,
    *,
    head: str = "keep",
    seed: int = 0,
) -> Imported:
    """Reads a file of weights, and makes the model that they fit.

    Args:
        path: .pth, .pt, .safetensors, .npz or .caffemodel.
        model: keyword arguments of `create_model`. Without `num_classes` it is what
            the file says; what the file's net needs besides (such as FCN's released
            geometry) is added. {"name": "classifier", "encoder": ...} for a classifier.
            None for a file of our own, which says it.
        head: "keep" takes everything over, and everything must be there; "new"
            leaves the layers that depend on the classes, and those that such files do
            not have, as they are initialized.
        seed: of the parameters that are new.

    Returns:
        The model's arguments and variables.

    Raises:
        WeightsError: if the file cannot be read, or does not fit; with all names.
    """
    metadata = _exported(path)
    if model is None:
        if metadata is None:
            raise WeightsError(
                f"{path} does not contain the name of its model; give the model."
            )
        model = metadata.model
    channels = 3 if metadata is None else metadata.channels
    fitted = read_fitting(path, model)
    arguments = fitted.model
    like = abstract_variables(build(arguments), channels)
    converted = fitted.convert(like, head=head)
    leaves: dict[str, Any] = converted.variables
    if converted.new:
        leaves = leaves | _draw(arguments, converted.new, seed, channels)
    variables = {"params": {}, "batch_stats": {}} | unflatten(leaves)
    return Imported(arguments, variables, metadata, converted)


def read_fitting(path: str | os.PathLike, model: MappingType[str, Any]) -> FittedFile:
    """Reads a file of weights, and finds the mapping that fits a model best.

    Args:
        path: as `import_weights` takes it.
        model: keyword arguments of `create_model`; what the file's network needs
            besides is added.

    Raises:
        WeightsError: if the file cannot be read, or no mapping is known.
    """
    return FittedFile(*_fit(path, files.read(path), model))


def export_weights(
    path: str | os.PathLike, variables: Any, metadata: RunMetadata
) -> None:
    """Writes a model to a safetensors file that `import_weights` takes back.

    Args:
        path: of the file.
        variables: `params` and `batch_stats`.
        metadata: of the workdir.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    files.write_safetensors(path, tensors, {EXPORT: json.dumps(metadata.to_json())})


def build(model: MappingType[str, Any]) -> nn.Module:
    """The module that a model's arguments describe, classifiers too."""
    if model["name"] != CLASSIFIER:
        return create_model(**model)
    arguments = {k: v for k, v in model.items() if k != "name"}
    return create_classifier(arguments.pop("encoder"), **arguments)


def class_dependent(model: MappingType[str, Any]) -> frozenset[str]:
    """Paths of the variables whose shape depends on the number of classes.

    Args:
        model: keyword arguments of `create_model`.
    """
    one, other = (
        {name: leaf.shape for name, leaf in flatten(_abstract(model | n)).items()}
        for n in ({"num_classes": 2}, {"num_classes": 3})
    )
    return frozenset(name for name in one if one[name] != other[name])


def _replaced(head: str, model: MappingType[str, Any]) -> frozenset[str] | None:
    """What `convert` takes."""
    if head not in ("keep", "new"):
        raise WeightsError(f'head={head!r}: take "keep" or "new".')
    return class_dependent(model) if head == "new" else None


def _abstract(model) -> Any:
    return abstract_variables(build(model))


def _draw(
    model, names: tuple[str, ...], seed: int, channels: int
) -> dict[str, jax.Array]:
    """Some of a model's variables as they are initialized; the others are not made."""

    @jax.jit
    def draw():
        module = build(model)
        leaves = flatten(initial_variables(module, jax.random.key(seed), channels))
        return {name: leaves[name] for name in names}

    return draw()


def _exported(path: str | os.PathLike) -> RunMetadata | None:
    """The metadata of a file of our own."""
    header = files.read_metadata(path)
    if EXPORT not in header:
        return None
    try:
        content = json.loads(header[EXPORT])
    except json.JSONDecodeError as error:
        raise WeightsError(f"The header of {path} is damaged: {error}.") from error
    try:
        return RunMetadata.from_json(content, f"the header of {path}")
    except MetadataError as error:
        raise WeightsError(str(error)) from error


def _fit(path, tensors: Tensors, model: MappingType[str, Any]):
    """What fits best: tensors, mapping, and the model's arguments."""
    fits = []
    for mapping in _mappings(path, tensors, model):
        arguments = {"num_classes": None} | mapping.kwargs | model
        # Names do not depend on how many classes there are.
        like = _abstract(arguments | {"num_classes": arguments["num_classes"] or 1})
        fits += [
            (match_fraction(given, mapping, like), given, mapping, arguments)
            for given in _unwrapped(tensors)
        ]
    _, tensors, mapping, arguments = max(fits, key=lambda fit: fit[0])
    if arguments["num_classes"] is None and mapping.classes in tensors:
        arguments["num_classes"] = len(tensors[mapping.classes])
    if arguments["num_classes"] is None:
        raise WeightsError(
            f"{path} does not contain the number of classes; give num_classes, and a "
            "new head if the file is of a classifier."
        )
    return tensors, mapping, arguments


def _unwrapped(tensors: Tensors) -> list[Tensors]:
    """The tensors, and the same less what all their names begin with: "model."."""
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
    described = {"encoder": _default_encoder(model["name"])} | model
    mappings = [m for family in FAMILIES for m in family.mappings(described)]
    if not mappings:
        raise WeightsError(
            f"No other library's weights are known for {model['name']} with the "
            f"encoder {described['encoder']!r}."
        )
    return mappings


def _default_encoder(name: str) -> str | None:
    """What a model's builder takes for its encoder; None where there is no choice."""
    if name == CLASSIFIER:
        return None
    if name not in MODELS:
        create_model(name, 1)  # says which there are
    parameter = inspect.signature(MODELS[name]).parameters.get("encoder")
    return parameter.default if parameter else None
