"""Changing a network's weights into another's: pure functions on arrays and variables."""

import numpy as np

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
