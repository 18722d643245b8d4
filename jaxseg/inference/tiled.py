"""Class maps of images of any size, strip by strip from tiles that overlap."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product

import jax
import numpy as np
from scipy.special import entr

from jaxseg.data.images import check_image
from jaxseg.data.tiff import TiffWindows
from jaxseg.inference.scorers import Scorer
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.tiling import tile_starts, weigh
from jaxseg.parallel.mesh import SPLIT, Batch, create_parallel

TILES_PER_DEVICE = 4


class TiledPredictor:
    """Predicts as the best of `scorers.tiles`, with memory for a strip of the image.

        predict = TiledPredictor(scorer, variables, metadata, (512, 512))
        classes = predict(image)

    Probabilities are kept for the rows that later tiles still add to: a tile's height
    times the image's width times K + 1 numbers of 4 bytes. What else grows with the
    image is its class map, if all of it is asked for at once, and the image itself,
    unless it is read by windows. Tiles are scored some at a time, split over the
    devices, by one program whatever the image's size. An image smaller than a tile is
    continued to its size by its last row and column.

    Attributes:
        metadata: of the workdir; `class_names` and `palette` say what classes mean.
    """

    def __init__(
        self,
        scorer: Scorer,
        variables: Variables,
        metadata: RunMetadata,
        size: tuple[int, int],
        overlap: float = 0.5,
        margin: int = 0,
    ):
        """Sets up the prediction; nothing is compiled yet.

        Args:
            scorer: of each tile; see `inference`.
            variables: for it.
            metadata: of the workdir; `channels` and `class_names` are used.
            size: height and width of a tile, in pixels.
            overlap: as of `scorers.tiles`.
            margin: likewise.
        """
        self.metadata = metadata
        self._size, self._overlap, self._margin = size, overlap, margin
        # As written on each device: what one does by loops would be done by all.
        self._parallel = create_parallel("shard_map")
        self._batch = TILES_PER_DEVICE * self._parallel.mesh.size
        self._variables = jax.device_put(variables, self._parallel.replicated)
        step = partial(_weighed, scorer=scorer, margin=margin)
        self._weighed = self._parallel.compile(step, outputs=SPLIT)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image to classes.

        Args:
            image: uint8 [H, W, C] of the network's channels, RGB for three.

        Returns:
            uint8 [H, W], numbers into `metadata.class_names`.

        Raises:
            ValueError: if the image is no such array, or has no pixel.
        """
        strips = self.strips(image)
        return np.concatenate([classes for classes, _ in strips])

    def with_entropy(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes, and how undecided they are; see `Predictor.with_entropy`."""
        classes, entropy = zip(*self.strips(image, uncertain=True))
        return np.concatenate(classes), np.concatenate(entropy)

    def strips(
        self, image: np.ndarray | TiffWindows, uncertain: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The same some rows at a time, from the top to the bottom.

        Args:
            image: as above, or one that is read by windows.
            uncertain: whether the entropy is wanted.

        Yields:
            Classes, uint8 [h, W], and their entropy, float16 [h, W], or None.
        """
        check_image(image, self.metadata.channels)
        height, width = image.shape[:2]
        for top, totals in self._strips(image):
            totals = totals[: height - top, :width]
            entropy = None
            if uncertain:
                probabilities = totals[..., :-1] / totals[..., -1:]
                entropy = _entropy(probabilities).astype(np.float16)
            yield totals[..., :-1].argmax(axis=-1).astype(np.uint8), entropy

    def _strips(self, image: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """First rows of strips, and the strips' sums over tiles, [h, W, K + 1].

        Of an image smaller than a tile they are a tile's.
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

    def _patches(self, image: np.ndarray, corners: list) -> Iterator[np.ndarray]:
        """What each tile adds to the sum, [h, w, K + 1], in order."""
        height, width = self._size
        waiting = None
        for first in range(0, len(corners), self._batch):
            batch = corners[first : first + self._batch]
            count = len(batch)
            batch += batch[-1:] * (self._batch - count)
            tiles = [image[y : y + height, x : x + width] for y, x in batch]
            sides = np.maximum(image.shape[:2], self._size)
            batch = {
                "image": np.stack([_continued(tile, self._size) for tile in tiles]),
                "corner": np.array(batch, np.int32),
                "sides": np.tile(np.int32(sides), (self._batch, 1)),
            }
            scored = self._weighed(self._variables, self._parallel.place(batch))
            # The devices are at work on these while those before are added up.
            if waiting is not None:
                yield from np.asarray(waiting)
            waiting = scored[:count]
        yield from np.asarray(waiting)


def _continued(tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A tile of an image that is smaller, by its last row and column."""
    beyond = [(0, n - m) for n, m in zip(size, tile.shape)]
    return np.pad(tile, [*beyond, (0, 0)], mode="edge")


def _weighed(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    margin: int,
    axis_name: str | None,
) -> jax.Array:
    """Probabilities of tiles times their weights, and these, [B, h, w, K + 1]."""
    del axis_name
    scores = scorer(variables, batch["image"])
    add = jax.vmap(partial(weigh, margin=margin))
    return add(scores, batch["corner"], batch["sides"])


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Of [..., K], as a share of the most there can be."""
    most = math.log(max(2, probabilities.shape[-1]))
    return entr(probabilities).sum(axis=-1) / most
