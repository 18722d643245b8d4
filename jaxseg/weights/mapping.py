"""From the tensors of a foreign file to the variables of a model, every one accounted for.

A variable has its path as name, "params/encoder/stage1/conv1/kernel". A mapping says for
each one which tensors of the file it is made of, and how.
"""

import collections
import fnmatch
import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import flatten

Tensors = MappingType[str, np.ndarray]

IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's normalization, RGB in 0..255."""

CAFFE = Normalization((122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0))
"""Caffe's ImageNet mean, RGB; its nets see BGR, which reversing the first kernel undoes."""


FEW = 24
"""As many names are listed one by one."""


class WeightsError(ValueError):
    """A file that does not fit the model, or that is no weight file."""


@dataclass(frozen=True)
class Source:
    """What one variable is made of.

    Attributes:
        names: tensors of the file.
        make: from these tensors to the variable, in our layout.
    """

    names: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda tensor: tensor


@dataclass(frozen=True)
class Mapping:
    """Where each variable of one model is in one family of files.

    Attributes:
        name: for messages, such as "torchvision vgg16".
        find: from a variable's path and shape to its source; None for a variable that
            such files do not have, which stays as it was initialized.
        normalization: of RGB in 0..255, that the weights were trained with.
        kwargs: arguments of `create_model` that give the net of the file.
        dropped: globs of their names that have no place in the model, such as a
            classifier's last layer; left out by explicit choice only.
        ignored: globs of their names that serve training alone, such as counters and
            auxiliary heads; left out whatever the head, and listed unless scalar.
        classes: the tensor whose first axis is the number of classes; None if the file
            does not say it.
    """

    name: str
    find: Callable[[str, tuple[int, ...]], Source | None]
    normalization: Normalization
    kwargs: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    classes: str | None = None


@dataclass(frozen=True)
class Converted:
    """The variables that a file gave, and what became of the rest.

    Attributes:
        variables: by path, numpy arrays of the model's shapes and types.
        new: paths that the file does not give.
        dropped: tensors that the model has no place for.
        mapping: by which it was done.
    """

    variables: dict[str, np.ndarray]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    mapping: Mapping


def convert(
    tensors: Tensors,
    like: Any,
    mapping: Mapping,
    *,
    replaced: frozenset[str] | None = None,
) -> Converted:
    """Makes the variables of a model from the tensors of a file.

    Args:
        tensors: of the file, by name.
        like: the model's variables, concrete or abstract.
        mapping: where each is in the file.
        replaced: paths of variables that are to stay as they were initialized, those
            that depend on the classes, and with them whatever such files lack or the
            model has no place for. None: everything must be on both sides.

    Returns:
        The variables that were found, and the names of all others on both sides.

    Raises:
        WeightsError: if a tensor is missing, left over, or of another shape; all of
            them are named.
    """
    leaves = flatten(like)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    sources = {name: mapping.find(name, shape) for name, shape in shapes.items()}
    lacking = {name for name, source in sources.items() if source is None}
    new = lacking | (replaced or frozenset())
    used = {tensor for name in shapes.keys() - new for tensor in sources[name].names}
    spared = {tensor for name in new - lacking for tensor in sources[name].names} - used
    rest = tensors.keys() - used - spared
    ignored = {name for name in rest if _matches(name, mapping.ignored)}
    left = rest - ignored
    dropped = {name for name in left if _matches(name, mapping.dropped)}

    problems = _listed("not in the file", used - tensors.keys())
    problems += _listed("in the file, but not in the model", left - dropped)
    if replaced is None:
        chosen = "; a new head leaves them out"
        problems += _listed(f"in the file, without a place{chosen}", dropped)
        chosen = "; a new head starts them afresh"
        problems += _listed(f"in the model, but not in such files{chosen}", new)
    if problems:
        raise WeightsError(f"The file does not fit {mapping.name}:{problems}")

    variables, wrong = {}, []
    for name in shapes.keys() - new:
        source = sources[name]
        given = [tensors[tensor] for tensor in source.names]
        try:
            value = np.asarray(source.make(*given))
        except ValueError as error:  # of NumPy, about the tensor's shape
            wrong.append(f"{name} from {_shown(source, given)}: {error}")
            continue
        if value.shape != shapes[name]:
            wrong.append(f"{name} is {shapes[name]}, from {_shown(source, given)}")
        variables[name] = value.astype(leaves[name].dtype)
    if wrong:
        raise WeightsError(
            f"The file does not fit {mapping.name}:"
            + _listed("not as it should be", wrong)
        )
    gone = dropped | (spared & tensors.keys())
    gone |= {name for name in ignored if tensors[name].ndim}
    return Converted(variables, tuple(sorted(new)), tuple(sorted(gone)), mapping)


def match_fraction(tensors: Tensors, mapping: Mapping, like: Any) -> float:
    """How well a file fits a mapping, from 0 to 1: the share of names in common.

    Args:
        tensors: of the file, by name.
        mapping: where each variable would be.
        like: the model's variables, concrete or abstract.
    """
    sources = (
        mapping.find(name, tuple(leaf.shape)) for name, leaf in flatten(like).items()
    )
    names = {tensor for source in sources if source for tensor in source.names}
    return len(names & tensors.keys()) / max(len(names | tensors.keys()), 1)


def conv(kernel: np.ndarray) -> np.ndarray:
    """[Cout, Cin, kh, kw] of torch and Caffe to [kh, kw, Cin, Cout]; groups as well."""
    return kernel.transpose(2, 3, 1, 0)


def conv_bgr(kernel: np.ndarray) -> np.ndarray:
    """A first layer that sees BGR, made to see RGB."""
    return conv(kernel[:, ::-1])


def dense(kernel: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out]."""
    return kernel.T


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def summary(names: Iterable[str]) -> str:
    """Names for the eye: all of a few, and of many how many begin alike.

    Args:
        names: of variables, with "/", or of tensors, with ".".
    """
    names = sorted(names)
    if len(names) <= FEW:
        return ", ".join(names)
    counts = collections.Counter(
        re.sub(r"^(.*?[/.].*?[/.]).*", r"\1*", n) for n in names
    )
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _listed(title: str, names) -> str:
    """A line that names them; nothing if there are none."""
    return f"\n  {title}: {summary(names)}" if names else ""


def _shown(source: Source, tensors: list[np.ndarray]) -> str:
    return ", ".join(f"{n} {t.shape}" for n, t in zip(source.names, tensors))
