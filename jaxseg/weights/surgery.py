"""Adapting the weights of one network to another: pure functions.

See also `folding`, for BatchNorm.
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
    """Converts a dense layer on a whole feature map to a convolution.

    Args:
        kernel: [out, C * side * side] of PyTorch or Caffe, which flatten the map
            channel by channel, then row by row.
        side: height and width of the map, in cells; 1 for a dense layer on the units of
            another one.

    Returns:
        Kernel [side, side, C, out].

    Raises:
        WeightsError: if the kernel does not have this shape.
    """
    if kernel.ndim != 2 or kernel.shape[1] % side**2:
        raise WeightsError(
            f"The kernel of a dense layer on {side}x{side} cells must be [out, C * "
            f"{side**2}], not {list(kernel.shape)}."
        )
    return kernel.reshape(len(kernel), -1, side, side).transpose(2, 3, 1, 0)


def dense_from_chw(kernel: np.ndarray, side: int) -> np.ndarray:
    """Converts a dense layer of PyTorch or Caffe to maps flattened channels last.

    Args:
        kernel: [out, C * side * side]; see `dense_to_conv`.
        side: height and width of the map, in cells.

    Returns:
        Kernel [side * side * C, out].

    Raises:
        WeightsError: if the kernel does not have this shape.
    """
    return dense_to_conv(kernel, side).reshape(-1, len(kernel))


def subsample_dense(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Subsamples the taps and units of a dense layer converted to a convolution.

    For DeepLab-LargeFOV. Of n taps, m evenly spaced ones are kept, including the first
    and the last: 0, 3 and 6 of 7, which dilation 12 at stride 8 puts where they were at
    stride 32; or 0, 2, 4 and 6. Of n units, those with index floor(i n / m) are kept,
    consistently in the kernel and bias of fc6 and on both sides of fc7's kernel. (The
    paper chooses units at random, but their order is random anyway.) The remaining
    weights are not rescaled.

    Args:
        tensor: kernel [kh, kw, Cin, Cout] or bias [Cout].
        shape: of the result, not larger along any axis.

    Returns:
        The subsampled tensor.

    Raises:
        WeightsError: if the shape is larger than the tensor's along an axis.

    Source: DeepLab v1, sec. 3.1, https://arxiv.org/abs/1412.7062.
    """
    if len(shape) != tensor.ndim or any(m > n for n, m in zip(tensor.shape, shape)):
        raise WeightsError(
            f"A tensor of shape {tuple(tensor.shape)} cannot be subsampled to "
            f"{tuple(shape)}; no axis may be larger."
        )
    taps = tensor.ndim - 2  # number of axes before the channels, for a kernel
    kept = [
        np.linspace(0, n - 1, m).round().astype(int)
        if axis < taps
        # Integer arithmetic, so that rounding does not skip or repeat a unit.
        else np.arange(m) * n // m
        for axis, (n, m) in enumerate(zip(tensor.shape, shape))
    ]
    return tensor[np.ix_(*kept)]


def convolutionalize(variables: Any, side: int = 7) -> dict[str, Any]:
    """Converts a classifier's variables to those of `fcn32s` on the same encoder.

    The dense layers become convolutions. At each cell of the encoder's map, the scores
    are then those of the dense layers on the side x side window that begins there
    ("VALID" padding; with "SAME" the window is centered). If the classifier averages
    the map before its only dense layer, as GoogLeNet does, they are the scores of this
    layer on each cell, and their mean over a window is the classifier's score of it.

    For an image of the classifier's input size there is one cell, with the classifier's
    scores, if the encoder has the same geometry. For a larger image, the scores equal
    the dense layers applied at every cell of the map. They equal the classifier applied
    to crops of the image only if no convolution pads, since around a crop the
    classifier sees zeros instead of the image.

    Args:
        variables: of a `jaxseg.models.classifier.Classifier`.
        side: height and width of the map under fc6, in cells: 7 for VGG16, 6 for
            AlexNet. Ignored if the head has only one dense layer.

    Returns:
        Variables whose `neck` contains the layers of the head as convolutions. The last
        one is `neck/score`, for the classes of the classifier.

    Raises:
        WeightsError: if a layer of the head is not dense, as in ConvNeXt, or fc6 does
            not have this shape.

    Source: FCN, sec. 3.1, https://arxiv.org/abs/1411.4038.
    """
    params = dict(variables["params"])
    head = params.pop("head")
    *hidden, last = sorted(head)
    if any("kernel" not in layer for layer in head.values()):
        raise WeightsError(
            f"Not all layers of the head are dense ({', '.join(sorted(head))}); a "
            "normalization of the averaged map cannot be converted to a convolution."
        )

    def conv(name, side):
        kernel = head[name]["kernel"]
        if len(kernel) % side**2:
            raise WeightsError(
                f"head/{name} has {len(kernel)} inputs, which is not a multiple of "
                f"{side}x{side} cells; pass the side of the map under it."
            )
        # The inputs are already flattened channels last.
        shape = (side, side, len(kernel) // side**2, kernel.shape[1])
        return head[name] | {"kernel": kernel.reshape(shape)}

    neck: dict[str, Any] = {"score": conv(last, 1)}
    if hidden:
        neck["block"] = {
            name: conv(name, side if name == "fc6" else 1) for name in hidden
        }
    return {**variables, "params": params | {"neck": neck}}


def adapt_input(kernel: np.ndarray, channels: int, how: str = "mean") -> np.ndarray:
    """Adapts the first convolution to another number of image channels.

        "mean"    every channel gets the mean of the old kernels times C / channels
        "repeat"  the old kernels are repeated, each divided by its number of copies
        "zero"    the old kernels, and zeros for the additional channels

    With "mean" and "repeat", images whose channels are all equal give the same features
    as before: a gray image gives the same with one channel as with three. With "zero",
    all images do, because the additional channels have no effect; their kernels receive
    gradients from the first step.

    Args:
        kernel: [kh, kw, C, out].
        channels: of the new images, at least 1; at least C for "repeat" and "zero".
        how: "mean", "repeat" or "zero", see above.

    Returns:
        Kernel [kh, kw, channels, out].

    Raises:
        WeightsError: if `how` is unknown, or does not allow so few channels.
    """
    old = kernel.shape[2]
    if how not in ("mean", "repeat", "zero"):
        raise WeightsError(f'how is {how!r}; it must be "mean", "repeat" or "zero".')
    if channels < (1 if how == "mean" else old):
        raise WeightsError(
            f"{how!r} cannot reduce a layer of {old} channels to {channels}; use "
            '"mean".'
        )
    if how == "mean":
        mean = kernel.mean(axis=2, keepdims=True) * (old / channels)
        return mean.repeat(channels, axis=2)
    source = np.arange(channels) % old
    if how == "repeat":
        factor = 1 / np.bincount(source)[source]
    else:
        factor = (np.arange(channels) < old).astype(float)
    return kernel[:, :, source] * factor.astype(kernel.dtype).reshape(1, 1, -1, 1)


class Transferred(NamedTuple):
    """The result of `transfer`.

    Attributes:
        variables: of the new model.
        new: paths of the new model's variables that keep their initial values.
        dropped: paths of the old model's variables that were not copied.
    """

    variables: dict[str, Any]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def transfer(variables: Any, like: Any, new: Sequence[str] = ()) -> Transferred:
    """Copies all variables that two models have under the same name.

    Use `new` for a new head: ("params/neck/score/*", "params/decoder/*") for other
    classes. Without it, FCN-16s can be trained from FCN-32s, and FCN-8s from FCN-16s:
    they have the same names except for the additional skip. (If the scores of the
    additional skip are zero, the new model is close to the old one, but not equal:
    upsampling by 2 and then by 16 equals upsampling by 32 only where the scores are
    linear, and not at borders.)

    Args:
        variables: of the trained model.
        like: initial variables of the new model.
        new: globs over paths of leaves, such as "params/neck/score/kernel", that keep
            their initial values; `*` also matches "/".

    Returns:
        The variables of the new model, and the names of those that were not copied.

    Raises:
        WeightsError: if shapes differ, or a glob matches nothing.
    """
    old, initial = flatten(variables), flatten(like)
    kept = {path for glob in new for path in _matching(initial, glob)}
    copied = {path: old[path] for path in initial.keys() & old.keys() - kept}
    wrong = [
        f"{path} is {tuple(copied[path].shape)}, but must be {tuple(leaf.shape)}"
        for path, leaf in initial.items()
        if path in copied and copied[path].shape != leaf.shape
    ]
    if wrong:
        raise WeightsError(
            f"Wrong shapes: {', '.join(wrong[:6])}. Variables that depend on the "
            "classes need a new head."
        )
    return Transferred(
        replace_leaves(like, copied),
        tuple(sorted(initial.keys() - copied.keys())),
        tuple(sorted(old.keys() - copied.keys())),
    )


def bilinear_start(
    variables: Any, strides: Mapping[str, int], key: jax.Array
) -> dict[str, Any]:
    """Sets transposed convolutions to bilinear interpolation; see `bilinear_init`.

    Args:
        variables: of any model.
        strides: strides of the layers, by globs over the paths of their kernels, such
            as {"params/decoder/upsamplers_*/kernel": 2}.
        key: random key, for layers whose numbers of channels differ.

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
        raise WeightsError(f"{glob!r} matches no path; there are {known} and others.")
    return paths
