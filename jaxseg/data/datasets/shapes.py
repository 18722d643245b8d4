"""Shapes: a synthetic data set that needs no download."""

import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.images import IGNORE, encode_png

CLASS_NAMES = ("ground", "disc", "ring", "square", "triangle", "cross")
PALETTE = (
    (112, 112, 112),
    (225, 60, 50),
    (235, 190, 40),
    (60, 170, 75),
    (50, 105, 220),
    (170, 65, 185),
)
_NEIGHBORS = np.ones((3, 3), np.uint8)
_SUPERSAMPLING = 4  # shapes are drawn this much larger, for smooth edges
_OWN_COLOR = 0.93  # fraction of shapes in the color of their class; others: any class


class Shapes(SegmentationBuilder, skip_registration=True):
    """Discs, rings, squares, triangles and crosses on a textured background.

    Shapes vary in size, rotation, color and brightness, and occlude one another; images
    are noisy. Color is a hint of the class, not proof: some shapes have the color of
    another class. Shapes have a void outline, one pixel on either side of the edge.
    Each image depends only on (seed, split, index).

    Args:
        data_dir: folder that TFDS writes to.
        image_size: (height, width) in pixels.
        train_examples: number of images in the split `train`.
        val_examples: number of images in the split `val`.
        seed: random seed of the images.
    """

    name = "shapes"
    class_names = CLASS_NAMES
    palette = PALETTE

    def __init__(
        self,
        *,
        data_dir: str,
        image_size: tuple[int, int] = (64, 64),
        train_examples: int = 2000,
        val_examples: int = 200,
        seed: int = 0,
    ):
        self._size = (int(image_size[0]), int(image_size[1]))
        if min(self._size) < 16:
            raise ValueError(
                f"shapes: image_size {self._size} is too small; use at least 16 pixels"
            )
        self._count = {"train": train_examples, "val": val_examples}
        self._seed = seed
        super().__init__(data_dir=data_dir)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._count)

    def num_examples(self, split: str) -> int:
        """Number of images of a split."""
        return self._count[split]

    def identity(self) -> dict[str, Any]:
        """The options, and a checksum of what the current code draws."""
        image, label = draw_shapes(np.random.default_rng(self._seed), self._size)
        return {
            "size": self._size,
            "count": self._count,
            "seed": self._seed,
            "drawing": zlib.crc32(image.tobytes() + label.tobytes()),
        }

    def examples(self, split: str) -> Iterator[Example]:
        """Draws the images of a split."""
        for index in range(self._count[split]):
            rng = np.random.default_rng([self._seed, zlib.crc32(split.encode()), index])
            image, label = draw_shapes(rng, self._size)
            yield Example(f"{split}_{index:06d}", encode_png(image), label)


def draw_shapes(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image.

    Args:
        rng: random generator.
        size: (height, width) in pixels.

    Returns:
        image uint8 [H, W, 3] and label uint8 [H, W] (indices into `CLASS_NAMES`, 255 on
        the outlines of shapes).
    """
    height, width = size
    image = _ground(rng, size)
    label = np.zeros(size, np.uint8)
    # One shape per 38 x 38 pixels on average, for images of all sizes.
    mean = max(2, height * width / 38**2)
    for _ in range(rng.integers(round(0.6 * mean), round(1.4 * mean), endpoint=True)):
        kind = int(rng.integers(1, len(CLASS_NAMES)))
        radius = rng.uniform(8, 15) * min(1.0, min(size) / 32)
        center = rng.uniform((0, 0), (width, height))
        cover = _cover(kind, size, center, radius, rng.uniform(0, 2 * np.pi))
        color = _color(rng, kind)
        shade = color * (1 + 0.15 * _smooth_noise(rng, size)[..., None])
        image += cover[..., None] * (shade - image)
        # Pixels on either side of the outline are void.
        inside = (cover >= 0.5).astype(np.uint8)
        label[cv2.dilate(inside, _NEIGHBORS) > 0] = IGNORE
        label[cv2.erode(inside, _NEIGHBORS) > 0] = kind
    image += rng.normal(0, rng.uniform(4, 14), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Two muted colors mixed by smooth noise and faint stripes; float [H, W, 3]."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    stripes = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
    mix = 0.5 + 0.4 * _smooth_noise(rng, size) + 0.15 * stripes
    gray = rng.uniform(60, 190)
    first, second = gray + rng.uniform(-35, 35, (2, 3))
    return first + mix[..., None] * (second - first)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise with features of about eight pixels, in -1..1; float [H, W]."""
    coarse = rng.uniform(-1, 1, (size[0] // 8 + 2, size[1] // 8 + 2))
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _color(rng: np.random.Generator, kind: int) -> np.ndarray:
    own = rng.uniform() < _OWN_COLOR
    shown = kind if own else rng.integers(1, len(CLASS_NAMES))
    return np.array(PALETTE[shown]) * rng.uniform(0.7, 1.15) + rng.normal(0, 15, 3)


def _cover(
    kind: int,
    size: tuple[int, int],
    center: np.ndarray,
    radius: float,
    angle: float,
) -> np.ndarray:
    """The fraction of each pixel that a shape covers, 0..1; float [H, W]."""
    scale = _SUPERSAMPLING
    canvas = np.zeros((size[0] * scale, size[1] * scale), np.uint8)
    for outline, value in _outlines(kind, angle):
        points = np.rint((center + radius * outline) * scale).astype(np.int32)
        cv2.fillPoly(canvas, [points], value)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA) / 255.0


def _outlines(kind: int, angle: float) -> list[tuple[np.ndarray, int]]:
    """Polygons to fill in turn with 255 or 0; all shapes have about the same area."""
    name = CLASS_NAMES[kind]
    if name == "disc":
        return [(_polygon(48, angle), 255)]
    if name == "ring":
        return [(1.15 * _polygon(48, angle), 255), (0.5 * _polygon(48, angle), 0)]
    if name == "square":
        return [(1.2 * _polygon(4, angle), 255)]
    if name == "triangle":
        return [(1.4 * _polygon(3, angle), 255)]
    bar = np.array([[1.2, 0.4], [-1.2, 0.4], [-1.2, -0.4], [1.2, -0.4]])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return [(bar @ turn, 255), (bar[:, ::-1] @ turn, 255)]


def _polygon(corners: int, angle: float) -> np.ndarray:
    turns = angle + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(turns), np.sin(turns)], axis=-1)
