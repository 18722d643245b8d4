"""Overlapping tiles of an image: their positions, and the weights to blend them."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Corner = jax.Array | Sequence[int | jax.Array]
"""Two integers, as an array or one by one."""

STRIDE_PX = 32
"""Tiles begin at multiples of this stride if their step is longer. It is the largest
output stride of the networks, and only at its multiples does a network compute the same
features in a tile as in the whole image."""


DEFAULT_OVERLAP = 0.5
"""Fraction of a tile that the next one also covers, where tiles are averaged."""


def choose_overlap(size: tuple[int, int], context: int) -> float:
    """The overlap of tiles for a network that needs context around what it scores.

    Args:
        size: height and width of a tile, in pixels.
        context: pixels that the network needs on each side; 0 for one that pads.

    Returns:
        `DEFAULT_OVERLAP` without context. Otherwise just enough that, for each pixel,
        one tile contains its whole context, so that nothing is averaged.

    Raises:
        ValueError: if a tile is empty or too small for the context.
    """
    if context < 0 or min(size) < 1:
        raise ValueError(
            f"size is {size} and context is {context}; sides must be at least 1 pixel, "
            "and the context at least 0."
        )
    if not context:
        return DEFAULT_OVERLAP
    overlap = (2 * context + 1) / min(size)
    if overlap >= 1:
        raise ValueError(
            f"Tiles of {size[0]}x{size[1]} pixels are too small: the network needs "
            f"{context} pixels of context on each side; use at least {4 * context} "
            "pixels."
        )
    return overlap


def tile_starts(length: int, size: int, overlap: float, margin: int = 0) -> list[int]:
    """First pixels of the tiles along one side.

    Tiles are a fixed step apart, except that the last one ends with the image.

    Args:
        length: of the image side, in pixels.
        size: of a tile, in pixels.
        overlap: smallest fraction of a tile that the next one also covers, in [0, 1).
        margin: pixels at both ends of a tile that neighboring tiles must cover.

    Returns:
        The first pixel of each tile, in increasing order.

    Raises:
        ValueError: if a tile is empty or longer than the side, `overlap` is not in [0, 1), or
            the overlap is smaller than two margins.
    """
    if size < 1 or margin < 0:
        raise ValueError(
            f"Tiles of {size} pixels with margins of {margin} are impossible; tiles "
            "need at least 1 pixel, and margins at least 0."
        )
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be in [0, 1).")
    if size > length:
        raise ValueError(
            f"Tiles of {size} pixels do not fit into {length} pixels; use smaller tiles."
        )
    if 2 * margin > size * overlap:
        raise ValueError(
            f"Tiles of {size} pixels with overlap {overlap:.2f} do not cover margins of "
            f"{margin} pixels; use an overlap of {2 * margin / size:.2f} or more."
        )
    step = max(1, math.floor(size * (1 - overlap)))
    if step > STRIDE_PX:
        step -= step % STRIDE_PX
    return [*range(0, length - size, step), length - size]


def tile_weight(size: tuple[int, int]) -> np.ndarray:
    """Blending weights of a tile's pixels: a Gaussian around the tile's center.

    Its standard deviation is an eighth of the side. At the middle of an edge it is
    still exp(-8), so borders that only one tile covers do not vanish.

    Args:
        size: (height, width) of a tile, in pixels.

    Returns:
        Weights in (0, 1], float32 [h, w].
    """
    sides = [np.exp(-32 * ((np.arange(n) + 0.5) / n - 0.5) ** 2) for n in size]
    return np.outer(*sides).astype(np.float32)


def tile_mask(
    corner: Corner, size: tuple[int, int], image_size: Corner, margin: int
) -> jax.Array:
    """Mask of a tile's pixels that are used: all but the margins inside the image.

    Args:
        corner: (row, column) of the tile's first pixel.
        size: (height, width) of the tile, in pixels.
        image_size: (height, width) of the image, in pixels.
        margin: width of the margins, in pixels.

    Returns:
        bool [h, w].
    """
    used = []
    for start, length, side in zip(corner, size, image_size):
        pixel = jnp.arange(length)
        first = (pixel >= margin) | (start == 0)
        last = (pixel < length - margin) | (start + length == side)
        used.append(first & last)
    return used[0][:, None] & used[1][None, :]


def weigh(
    scores: jax.Array, corner: Corner, image_size: Corner, margin: int
) -> jax.Array:
    """A tile's contribution to the weighted sum over all tiles.

    Args:
        scores: logits of the tile, [..., h, w, K].
        corner: (row, column) of the tile's first pixel.
        image_size: (height, width) of the image, in pixels.
        margin: width of the margins to leave out, in pixels; see `tile_mask`.

    Returns:
        Weighted probabilities, followed by the weights to divide their sum by, float32
        [..., h, w, K + 1].
    """
    height, width = scores.shape[-3:-1]
    probabilities = jax.nn.softmax(scores)
    ones = jnp.ones((*probabilities.shape[:-1], 1))
    patch = jnp.concatenate([probabilities, ones], axis=-1)
    size = (height, width)
    weight = tile_weight(size) * tile_mask(corner, size, image_size, margin)
    return patch * jnp.broadcast_to(weight[..., None], patch.shape)
