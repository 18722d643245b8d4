"""Conversion of the tensors of another library's file to the variables of a model.

Variables are named by their paths, such as "params/encoder/stage1/conv1/kernel". A name
mapping defines for each variable the tensors of the file that it is computed from, and
how. Every tensor and every variable must be accounted for.
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
"""Normalization of torchvision, RGB in 0..255."""

CAFFE = Normalization((122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0))
"""ImageNet mean of Caffe, RGB. Caffe's networks expect BGR; `conv_bgr` converts them."""

MAX_LISTED = 24
"""Largest number of names that are listed one by one."""


class WeightsError(ValueError):
    """A weight file does not fit the model, is damaged or is of an unknown kind."""


@dataclass(frozen=True)
class Source:
    """The tensors that a variable is computed from.

    Attributes:
        names: of the tensors in the file.
        make: function from these tensors to the variable, in our layout.
    """

    names: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda tensor: tensor


@dataclass(frozen=True)
class Mapping:
    """Sources of the variables of one model in one family of files.

    Attributes:
        name: for messages, such as "torchvision vgg16".
        find: function from a variable's path and shape to its source; None for a
            variable that such files do not contain, which keeps its initial value.
        normalization: of RGB in 0..255, that the weights were trained with.
        kwargs: arguments of `create_model` that build the network of the file.
        dropped: globs of tensors that the model has no variable for, such as the last
            layer of a classifier; they are only dropped with a new head.
        ignored: globs of tensors that are used in training only, such as counters and
            auxiliary heads; always dropped, and reported unless scalar.
        classes: name of the tensor whose first axis is the number of classes; None if
            the file does not contain it.
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
    """The variables read from a file.

    Attributes:
        variables: arrays with the shapes and dtypes of the model, by path.
        new: paths of the variables that were not read from the file.
        dropped: names of the tensors that were not used.
        mapping: the mapping that was used.
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
    """Computes the variables of a model from the tensors of a file.

    Args:
        tensors: of the file, by name.
        like: the model's variables, concrete or abstract.
        mapping: sources of the variables in the file.
        replaced: paths of the variables to replace by initial values, for a new head:
            those that depend on the classes. Then variables that such files do not
            contain, and tensors that the model has no variable for, are accepted, too.
            None if every variable and every tensor must be used.

    Returns:
        The variables that were found, and the names of all other variables and tensors.

    Raises:
        WeightsError: if tensors are missing, left over or have another shape; names all
            of them.
    """
    leaves = flatten(like)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    found = {name: mapping.find(name, shape) for name, shape in shapes.items()}
    sources = {name: source for name, source in found.items() if source is not None}
    new = (shapes.keys() - sources.keys()) | (replaced or frozenset())
    used = {name for path in sources.keys() - new for name in sources[path].names}
    unused = {name for path in sources.keys() & new for name in sources[path].names}
    unused -= used
    rest = tensors.keys() - used - unused
    ignored = {name for name in rest if _matches(name, mapping.ignored)}
    left = rest - ignored
    dropped = {name for name in left if _matches(name, mapping.dropped)}

    problems = _listed("not in the file", used - tensors.keys())
    problems += _listed("in the file, but not in the model", left - dropped)
    if replaced is None:
        hint = "which only a new head can drop"
        problems += _listed(f"in the file, but not in the model, {hint}", dropped)
        hint = "which only a new head can initialize"
        problems += _listed(f"in the model, but not in such files, {hint}", new)
    if problems:
        raise WeightsError(f"The file does not fit {mapping.name}:{problems}")

    variables, wrong = {}, []
    for name in shapes.keys() - new:
        source = sources[name]
        given = [tensors[tensor] for tensor in source.names]
        try:
            value = np.asarray(source.make(*given))
        except ValueError as error:  # raised by NumPy for a wrong shape
            wrong.append(f"{name} from {_shapes(source, given)}: {error}")
            continue
        if value.shape != shapes[name]:
            wrong.append(f"{name} is {shapes[name]}, from {_shapes(source, given)}")
        elif np.iscomplexobj(value):
            wrong.append(f"{name} is real, from complex {_shapes(source, given)}")
        else:
            with np.errstate(over="ignore"):  # what is infinite is checked later
                variables[name] = value.astype(leaves[name].dtype)
    if wrong:
        raise WeightsError(
            f"The file does not fit {mapping.name}:"
            + _listed("wrong shapes or types", wrong)
        )
    dropped |= unused & tensors.keys()
    dropped |= {name for name in ignored if tensors[name].ndim}
    return Converted(variables, tuple(sorted(new)), tuple(sorted(dropped)), mapping)


def match_fraction(tensors: Tensors, mapping: Mapping, like: Any) -> float:
    """How well a file fits a mapping: the fraction of names in common.

    Args:
        tensors: of the file, by name.
        mapping: sources of the variables in the file.
        like: the model's variables, concrete or abstract.

    Returns:
        A number from 0 to 1.
    """
    sources = (
        mapping.find(name, tuple(leaf.shape)) for name, leaf in flatten(like).items()
    )
    names = {tensor for source in sources if source for tensor in source.names}
    return len(names & tensors.keys()) / max(len(names | tensors.keys()), 1)


def conv(kernel: np.ndarray) -> np.ndarray:
    """Convolution kernel of PyTorch or Caffe, with or without groups.

    Args:
        kernel: [Cout, Cin, kh, kw].

    Returns:
        [kh, kw, Cin, Cout].
    """
    return kernel.transpose(2, 3, 1, 0)


def conv_bgr(kernel: np.ndarray) -> np.ndarray:
    """Like `conv`, for a first layer that expects BGR; the result expects RGB."""
    return conv(kernel[:, ::-1])


def conv_transpose(kernel: np.ndarray) -> np.ndarray:
    """Kernel of a transposed convolution of PyTorch or Caffe.

    Args:
        kernel: [Cin, Cout, kh, kw].

    Returns:
        [kh, kw, Cin, Cout].
    """
    return kernel.transpose(2, 3, 0, 1)


def dense(kernel: np.ndarray) -> np.ndarray:
    """Kernel of a dense layer, [out, in], as [in, out]."""
    return kernel.T


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def summary(names: Iterable[str]) -> str:
    """A readable list of names: all names if they are few, else counts by prefix.

    Args:
        names: of variables, with "/", or of tensors, with ".".

    Returns:
        Such as "a, b" or "params/decoder/* (30), params/head/* (2)".
    """
    names = sorted(names)
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    counts = collections.Counter(
        re.sub(r"^(.*?[/.].*?[/.]).*", r"\1*", n) for n in names
    )
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _listed(title: str, names) -> str:
    """A line that lists the names; empty if there are none."""
    return f"\n  {title}: {summary(names)}" if names else ""


def _shapes(source: Source, tensors: list[np.ndarray]) -> str:
    return ", ".join(f"{n} {t.shape}" for n, t in zip(source.names, tensors))
