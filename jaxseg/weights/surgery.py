"""Changing a network's weights into another's: pure functions on arrays and variables.

`folding` has one more, for BatchNorm.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg.models.upsamplers import bilinear_init
from jaxseg.utils.trees import flatten, replace_leaves
from jaxseg.weights.mapping import WeightsError


def dense_to_conv(kernel: np.ndarray, side: int) -> np.ndarray:
    """The convolution that a dense layer over a whole map is at each place of it.

    Args:
        kernel: [out, C * side * side] of torch or Caffe, which flatten channel by
            channel, then row by row; for a layer on another's units, side is 1.
        side: height and width of the map, in cells.

    Returns:
        Kernel [side, side, C, out].

    Raises:
        WeightsError: if the layer does not cover such a map.
    """
    if kernel.ndim != 2 or kernel.shape[1] % side**2:
        raise WeightsError(
            f"A dense layer over {side}x{side} cells has a kernel [out, C * {side**2}], "
            f"not {list(kernel.shape)}."
        )
    return kernel.reshape(len(kernel), -1, side, side).transpose(2, 3, 1, 0)


def dense_from_chw(kernel: np.ndarray, side: int) -> np.ndarray:
    """A dense layer of torch or Caffe, for a map that is flattened channels last.

    Args:
        kernel: [out, C * side * side], as `dense_to_conv` takes it.
        side: height and width of the map, in cells.

    Returns:
        Kernel [side * side * C, out].

    Raises:
        WeightsError: if the layer does not cover such a map.
    """
    return dense_to_conv(kernel, side).reshape(-1, len(kernel))


def subsample_dense(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Every so many-th tap and unit of a dense layer made a convolution, for LargeFOV.

    Of n taps, m are kept from the first to the last: 0, 3 and 6 of 7, which dilation 12
    at stride 8 puts where they were at stride 32; 0, 2, 4 and 6 where 4 are kept. Of n
    units, those numbered floor(i n / m) are kept, in fc6's kernel and bias and in fc7's
    kernel on both sides alike, so that what is left fits together. (The paper draws the
    units at random, and so are they numbered.) Nothing is scaled up for what is gone.

    Args:
        tensor: kernel [kh, kw, Cin, Cout] or bias [Cout].
        shape: of the result, no larger on any axis.

    Returns:
        A part of the tensor, of that shape.

    Raises:
        WeightsError: if the shape is no part of the tensor's.

    Source: DeepLab v1, sec. 3.1, https://arxiv.org/abs/1412.7062.
    """
    if len(shape) != tensor.ndim or any(m > n for n, m in zip(tensor.shape, shape)):
        raise WeightsError(f"{tuple(shape)} is no part of {tuple(tensor.shape)}.")
    taps = tensor.ndim - 2  # axes before the channels; none of a bias
    kept = [
        np.linspace(0, n - 1, m).round().astype(int)
        if axis < taps
        # Whole numbers, so that no unit is lost or doubled by rounding.
        else np.arange(m) * n // m
        for axis, (n, m) in enumerate(zip(tensor.shape, shape))
    ]
    return tensor[np.ix_(*kept)]


def convolutionalize(variables: Any, side: int = 7) -> dict[str, Any]:
    """A classifier's variables as those of `fcn32s` on its encoder, dense layers included.

    At each place of the encoder's map the scores are then what the dense layers say of
    the side x side window that begins there ("VALID" padding; with "SAME" the window is
    centerd). Where a classifier takes the mean before its only dense layer, as
    GoogLeNet does, they are what this layer says of each cell, and their mean over any
    window is what the classifier says of it.

    So on an image of the classifier's own size, and with its encoder's own geometry,
    there is one place, and the classifier's answer. On a larger image the encoder sees
    picture where a classifier moved to a place would see zeros around its crop:
    every place equals the moved classifier exactly if no convolution pads, and
    otherwise equals the dense layers moved over the map.

    Args:
        variables: of a `jaxseg.models.classifier.Classifier`.
        side: height and width of the map that fc6 covers, in cells: 7 for VGG16, 6 for
            AlexNet; a head of one layer behind a mean has no such.

    Returns:
        Variables whose `neck` has the head's layers as convolutions; the last is
        `neck/score`, with the classifier's classes.

    Raises:
        WeightsError: if the head has a layer that is no convolution, as ConvNeXt's has,
            or fc6 does not cover such a map.

    Source: FCN, sec. 3.1, https://arxiv.org/abs/1411.4038.
    """
    params = dict(variables["params"])
    head = params.pop("head")
    *hidden, last = sorted(head)
    if any("kernel" not in layer for layer in head.values()):
        raise WeightsError(
            f"Of the head's layers {', '.join(sorted(head))}, not all are dense; a "
            "normalization of the mean over the map is no convolution."
        )

    def conv(name, side):
        kernel = head[name]["kernel"]
        if len(kernel) % side**2:
            raise WeightsError(
                f"head/{name} has {len(kernel)} inputs, which are not those of "
                f"{side}x{side} cells."
            )
        # Already channels last, so that the cells are rows and columns.
        shape = (side, side, len(kernel) // side**2, kernel.shape[1])
        return head[name] | {"kernel": kernel.reshape(shape)}

    neck: dict[str, Any] = {"score": conv(last, 1)}
    if hidden:
        neck["block"] = {
            name: conv(name, side if name == "fc6" else 1) for name in hidden
        }
    return {**variables, "params": params | {"neck": neck}}


def adapt_input(kernel: np.ndarray, channels: int, how: str = "mean") -> np.ndarray:
    """A first layer made to see another number of channels.

        "mean"    every channel has the mean of the old kernels times C / channels
        "repeat"  the old kernels over and over, each divided by its number of copies
        "zero"    the old kernels, and zeros for the channels that are new

    With the first two an image whose channels are all alike gives what it gave: a gray
    image the same by one channel as by three. With the last any image does, whatever
    is in the new channels, and these have gradient from the first step on.

    Args:
        kernel: [kh, kw, C, out].
        channels: of the new image, at least 1; with "repeat" and "zero" at least C.
        how: as above.

    Returns:
        Kernel [kh, kw, channels, out].

    Raises:
        WeightsError: for another `how`, or fewer channels than it can make.
    """
    old = kernel.shape[2]
    if how not in ("mean", "repeat", "zero"):
        raise WeightsError(f'how={how!r}: take "mean", "repeat" or "zero".')
    if channels < (1 if how == "mean" else old):
        raise WeightsError(
            f"A layer of {old} channels cannot be made one of {channels} by {how!r}; "
            'to fewer it goes by "mean".'
        )
    if how == "mean":
        mean = kernel.mean(axis=2, keepdims=True) * (old / channels)
        return mean.repeat(channels, axis=2)
    source = np.arange(channels) % old
    if how == "repeat":
        share = 1 / np.bincount(source)[source]
    else:
        share = (np.arange(channels) < old).astype(float)
    return kernel[:, :, source] * share.astype(kernel.dtype).reshape(1, 1, -1, 1)


class Transferred(NamedTuple):
    """Variables, and what became of names that not both sides have.

    Attributes:
        variables: like those of the new model.
        new: paths that stay as they were initialized.
        dropped: paths that the new model has no place for.
    """

    variables: dict[str, Any]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def transfer(variables: Any, like: Any, new: Sequence[str] = ()) -> Transferred:
    """A model's variables, with all that another model has under the same name.

    With `new` a head starts afresh: ("params/neck/score/*", "params/decoder/*") for
    other classes. Without, it goes from stage to stage: FCN-32s, 16s and 8s have the
    same names, but for each stage's own skip. (With the skip's scores at zero the new
    stage starts near the end of the one before, not on it: enlarging by 2 and then 16
    is enlarging by 32 only where the scores are linear, and not at borders.)

    Args:
        variables: of the trained model.
        like: of the new model, freshly initialized.
        new: globs over paths of leaves, "params/neck/score/kernel", that are kept as
            they are in `like`; `*` also crosses "/".

    Returns:
        The variables, and the names of what is new and what was dropped.

    Raises:
        WeightsError: if shapes differ, or a glob matches nothing.
    """
    old, fresh = flatten(variables), flatten(like)
    kept = {path for glob in new for path in _matching(fresh, glob)}
    taken = {path: old[path] for path in fresh if path in old and path not in kept}
    wrong = [
        f"{path} is {tuple(leaf.shape)}, here {tuple(fresh[path].shape)}"
        for path, leaf in taken.items()
        if leaf.shape != fresh[path].shape
    ]
    if wrong:
        raise WeightsError(
            f"Of another shape: {', '.join(wrong)}. Name what is to start afresh."
        )
    return Transferred(
        replace_leaves(like, taken),
        tuple(sorted(fresh.keys() - taken.keys())),
        tuple(sorted(old.keys() - taken.keys())),
    )


def bilinear_start(
    variables: Any, strides: Mapping[str, int], key: jax.Array
) -> dict[str, Any]:
    """Transposed convolutions set to interpolate bilinearly, as `bilinear_init` says.

    Args:
        variables: of any model.
        strides: of the layers, by globs over the paths of their kernels, such as
            {"params/decoder/upsamplers_*/kernel": 2}.
        key: random key, for layers that mix other numbers of channels.

    Returns:
        The variables with these kernels replaced.

    Raises:
        WeightsError: if a glob matches nothing.
    """
    leaves, kernels = flatten(variables), {}
    for glob, stride in strides.items():
        for path in _matching(leaves, glob):
            key, own = jax.random.split(key)
            shape, dtype = leaves[path].shape, leaves[path].dtype
            kernels[path] = bilinear_init(stride)(own, shape, dtype)
    return replace_leaves(variables, kernels)


def _matching(leaves: Mapping[str, Any], glob: str) -> list[str]:
    paths = fnmatch.filter(leaves, glob)
    if not paths:
        known = ", ".join(sorted(leaves)[:: len(leaves) // 12 + 1])
        raise WeightsError(f"{glob!r} matches nothing; there are {known}, ...")
    return paths
