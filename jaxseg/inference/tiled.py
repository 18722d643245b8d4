"""Predicts class maps of images of any size from overlapping tiles, strip by strip."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from jaxseg.data.images import check_image
from jaxseg.data.tiff import TiffWindows
from jaxseg.inference.network import NonFiniteScoresError, Scorer
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.resize import pad_edges
from jaxseg.ops.tiling import DEFAULT_OVERLAP, tile_starts, weigh
from jaxseg.parallel.mesh import SPLIT, Batch, create_parallel

TILES_PER_DEVICE = 4


class TiledPredictor:
    """Predicts like `scorers.tiles`, with memory for one strip of the image.

        predict = TiledPredictor(scorer, variables, metadata, (512, 512))
        classes = predict(image)

    A strip has the height of a tile and the width of the image, with K + 1 float32
    values per pixel. Only the class map, if requested as a whole, and the image, unless
    it is read in windows, need memory for the whole image. Tiles are scored in batches
    split over the devices, by one compiled program for all image sizes. Images smaller
    than a tile are padded by repeating their last row and column.

    Attributes:
        metadata: metadata of the workdir, with the names and colors of the classes.
    """

    def __init__(
        self,
        scorer: Scorer,
        variables: Variables,
        metadata: RunMetadata,
        size: tuple[int, int],
        overlap: float = DEFAULT_OVERLAP,
        margin: int = 0,
    ):
        """Prepares the prediction; compiles nothing yet.

        Args:
            scorer: scorer of each tile; see `inference.scorers`.
            variables: variables for the scorer.
            metadata: metadata of the workdir.
            size: (height, width) of a tile, in pixels.
            overlap: as for `scorers.tiles`.
            margin: as for `scorers.tiles`.
        """
        self.metadata = metadata
        self._size, self._overlap, self._margin = size, overlap, margin
        # Under `jit`, loops in a scorer would not be split over the devices.
        self._parallel = create_parallel("shard_map")
        self._batch = TILES_PER_DEVICE * self._parallel.mesh.size
        self._variables = jax.device_put(variables, self._parallel.replicated)
        step = partial(_score_tiles, scorer=scorer, margin=margin)
        self._score = self._parallel.compile(step, outputs=SPLIT)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image to classes.

        Args:
            image: uint8 [H, W, C] with the channels of the network; RGB if they are 3.

        Returns:
            Class indices, uint8 [H, W].

        Raises:
            ValueError: if the image has another dtype or shape, or is empty.
        """
        strips = self.strips(image)
        return np.concatenate([classes for classes, _ in strips])

    def with_entropy(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes and normalized entropy; see `Predictor.with_entropy`."""
        classes, entropy = zip(*self.strips(image, with_entropy=True))
        return np.concatenate(classes), np.concatenate(entropy)

    def strips(
        self, image: np.ndarray | TiffWindows, with_entropy: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Maps an image to classes in strips of rows, from top to bottom.

        Args:
            image: as for `__call__`, or an image that is read in windows.
            with_entropy: whether to compute the entropy.

        Yields:
            Class indices, uint8 [h, W], and entropy, float16 [h, W], or None.

        Raises:
            ValueError: as for `__call__`.
            NonFiniteScoresError: if the network's scores are NaN or infinite.
        """
        check_image(image, self.metadata.channels)
        height, width = image.shape[:2]
        for top, totals in self._strips(image):
            totals = totals[: height - top, :width]
            # Weighted probabilities cannot add up to infinity.
            if not np.isfinite(totals.sum()):
                raise NonFiniteScoresError
            entropy = None
            if with_entropy:
                probabilities = totals[..., :-1] / totals[..., -1:]
                entropy = _entropy(probabilities).astype(np.float16)
            yield totals[..., :-1].argmax(axis=-1).astype(np.uint8), entropy

    def _strips(
        self, image: np.ndarray | TiffWindows
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The first row of each strip and its sum over tiles, [h, W, K + 1].

        Includes the padding of an image that is smaller than a tile.
        """
        height, width = self._size
        sides = np.maximum(image.shape[:2], self._size).tolist()
        tops, lefts = (
            tile_starts(side, n, self._overlap, self._margin)
            for side, n in zip(sides, self._size)
        )
        patches = self._patches(image, list(product(tops, lefts)))
        depth = self.metadata.num_classes + 1
        strip = np.zeros((height, sides[1], depth), np.float32)
        for top, below in zip(tops, [*tops[1:], sides[0]]):
            for left in lefts:
                strip[:, left : left + width] += next(patches)
            done = below - top
            yield top, strip[:done]
            strip[: height - done] = strip[done:]
            strip[height - done :] = 0

    def _patches(
        self, image: np.ndarray | TiffWindows, corners: list[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        """Each tile's contribution to the sum, [h, w, K + 1], in order."""
        height, width = self._size
        sides = np.maximum(image.shape[:2], self._size).astype(np.int32)
        waiting: Any = ()
        for first in range(0, len(corners), self._batch):
            chosen = corners[first : first + self._batch]
            count = len(chosen)
            chosen += chosen[-1:] * (self._batch - count)
            tiles = [image[y : y + height, x : x + width] for y, x in chosen]
            batch = {
                "image": np.stack([pad_edges(tile, self._size) for tile in tiles]),
                "corner": np.array(chosen, np.int32),
                "sides": np.tile(sides, (self._batch, 1)),
            }
            weighted = self._score(self._variables, self._parallel.place(batch))
            # The devices compute these while the tiles before are added up.
            yield from np.asarray(waiting)
            waiting = weighted[:count]
        yield from np.asarray(waiting)


def _score_tiles(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    margin: int,
    axis_name: str | None,
) -> jax.Array:
    """Weighted probabilities of tiles and their weights, [B, h, w, K + 1]."""
    del axis_name
    scores = scorer(variables, batch["image"])
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.nan)  # -inf would vanish
    add = jax.vmap(partial(weigh, margin=margin))
    return add(scores, batch["corner"], batch["sides"])


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of [..., K], relative to its maximum."""
    most = math.log(max(2, probabilities.shape[-1]))
    return entr(probabilities).sum(axis=-1) / most
