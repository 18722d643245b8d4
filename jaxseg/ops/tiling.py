"""Tiles over an image that overlap: where they lie, and how they are blended."""

import math

import jax
import jax.numpy as jnp
import numpy as np

STRIDE_PX = 32
"""Tiles begin at multiples of it where their step is longer. Networks shrink images by
up to as much, and only from such a place do they see what they see in the whole."""


def tile_starts(length: int, size: int, overlap: float, margin: int = 0) -> list[int]:
    """Where tiles begin along one side: a step apart; the last ends with the image.

    Args:
        length: of the side, in pixels.
        size: of a tile, in pixels.
        overlap: the least share of a tile in common with the next.
        margin: pixels at either end of a tile that the next has to cover.

    Raises:
        ValueError: if a tile is longer than the side, `overlap` not in [0, 1), or less
            than two margins.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: give a share of a tile, in [0, 1).")
    if size > length:
        raise ValueError(
            f"Tiles of {size} pixels do not fit into a side of {length}; take smaller "
            "ones."
        )
    if 2 * margin > size * overlap:
        raise ValueError(
            f"Tiles of {size} pixels that share {overlap:.0%} do not cover margins of "
            f"{margin} pixels; take an overlap of {2 * margin / size:.2f} or more."
        )
    step = max(1, math.floor(size * (1 - overlap)))
    if step > STRIDE_PX:
        step -= step % STRIDE_PX
    return [*range(0, length - size, step), length - size]


def tile_weight(size: tuple[int, int]) -> np.ndarray:
    """Weight of a tile's pixels, float32 [h, w]: a Gaussian of an eighth of its side.

    At the middle of an edge it is still exp(-8), so that a border that only one tile
    covers keeps its place.
    """
    sides = [np.exp(-32 * ((np.arange(n) + 0.5) / n - 0.5) ** 2) for n in size]
    return np.outer(*sides).astype(np.float32)


def tile_mask(
    corner: jax.Array, size: tuple[int, int], sides: jax.Array, margin: int
) -> jax.Array:
    """The pixels of a tile that count, boolean [h, w].

    Args:
        corner: row and column where the tile begins.
        size: of the tile.
        sides: of the image.
        margin: pixels along an edge that do not count, but where the image ends.
    """
    counts = []
    for start, length, side in zip(corner, size, sides):
        place = jnp.arange(length)
        first = (place >= margin) | (start == 0)
        last = (place < length - margin) | (start + length == side)
        counts.append(first & last)
    return counts[0][:, None] & counts[1][None, :]


def weigh(
    scores: jax.Array, corner: jax.Array, sides: jax.Array, margin: int
) -> jax.Array:
    """What a tile adds to the sum over tiles, float32 [..., h, w, K + 1].

    Args:
        scores: of the tile, [..., h, w, K].
        corner: row and column where it begins.
        sides: height and width of the image.
        margin: pixels along an edge that do not count, but where the image ends.

    Returns:
        Its probabilities times their weights, and the weights, to divide the sum by.
    """
    size = scores.shape[-3:-1]
    probabilities = jax.nn.softmax(scores)
    ones = jnp.ones((*probabilities.shape[:-1], 1))
    patch = jnp.concatenate([probabilities, ones], axis=-1)
    weight = tile_weight(size) * tile_mask(corner, size, sides, margin)
    return patch * jnp.broadcast_to(weight[..., None], patch.shape)
