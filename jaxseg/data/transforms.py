"""Data augmentation of an image together with its labels.

Pure functions on host arrays: all randomness comes from the generator passed in, and
uint8 stays uint8. Images are resized by area averaging or bilinear interpolation,
labels by the nearest pixel, both with half-pixel centers, so the two stay aligned.
"""

import math

import cv2
import numpy as np

from jaxseg.data.images import IGNORE


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image by area averaging if it shrinks, else by interpolation.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result, in pixels.

    Returns:
        uint8 [*size, C].

    Raises:
        ValueError: if the image or the size is empty.
    """
    height, width = size
    _check_sizes(image, size)
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] and width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return _channels(cv2.resize(image, (width, height), interpolation=how))


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label map by nearest-neighbor sampling.

    Args:
        label: uint8 [H, W].
        size: (height, width) of the result, in pixels.

    Returns:
        uint8 [*size].

    Raises:
        ValueError: if the label map or the size is empty.
    """
    height, width = size
    _check_sizes(label, size)
    if label.shape == (height, width):
        return label
    # INTER_NEAREST rounds down, which is off by half a pixel.
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def crop(
    image: np.ndarray,
    label: np.ndarray,
    offset: tuple[int, int],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Crops a window of image and labels, which may extend beyond the image.

    Beyond the border the image repeats its last pixel (black could look like an object)
    and the labels are void.

    Args:
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        offset: (row, column) of the window's first pixel; may be negative.
        size: (height, width) of the window, in pixels.

    Returns:
        image uint8 [*size, C] and label uint8 [*size].
    """
    height, width = label.shape
    top, left = offset
    bottom, right = top + size[0], left + size[1]
    inside = np.s_[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    image, label = image[inside], label[inside]
    margins = (
        max(-top, 0),
        max(bottom - height, 0),
        max(-left, 0),
        max(right - width, 0),
    )
    if any(margins):
        image = cv2.copyMakeBorder(image, *margins, cv2.BORDER_REPLICATE)
        label = cv2.copyMakeBorder(label, *margins, cv2.BORDER_CONSTANT, value=IGNORE)
    return _channels(image), label


def random_scale_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    *,
    scale: tuple[float, float],
    crop_px: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Scales by a random factor and crops a random window.

    The window is cropped first, in the pixels of the image, and then resized. An image
    smaller than the window is placed at random inside it (see `crop`).

    Args:
        rng: random generator.
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        scale: smallest and largest factor, drawn uniformly.
        crop_px: (height, width) of the result, in pixels.

    Returns:
        image uint8 [*crop_px, C] and label uint8 [*crop_px].
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side / factor)) for side in crop_px)
    top, left = (
        int(rng.integers(min(room, 0), max(room, 0), endpoint=True))
        # Negative if the window is larger than the image.
        for room in (label.shape[0] - height, label.shape[1] - width)
    )
    image, label = crop(image, label, (top, left), (height, width))
    return resize_image(image, crop_px), resize_label(label, crop_px)


def jitter_colors(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue at random.

    All four are affine in the color x of a pixel, so they are applied as one affine
    map, rounded and clipped once:

        x' = H S (b (c x + (1 - c) m))

    where b, c and s are drawn uniformly from 1 - argument to 1 + argument, m is the
    mean gray of the image, S = s I + (1 - s) gray, and H is a rotation about the gray
    axis.

    Args:
        rng: random generator.
        image: uint8 [H, W, 3], or [H, W, 1], for which saturation and hue are ignored.
        brightness: largest change of the factor b, 0 to 1.
        contrast: largest change of the factor c, 0 to 1.
        saturation: largest change of the factor s, 0 to 1.
        hue: largest rotation, as a fraction of the full circle, 0 to 0.5.

    Returns:
        uint8, the shape of `image`.

    Raises:
        ValueError: if an argument is out of range.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, amount in amounts.items():
        if not 0 <= amount <= 1:
            raise ValueError(f"{name} must be 0 to 1, not {amount}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must be 0 to 0.5, not {hue}")
    # Always drawn, so that one argument does not change the draws of the others.
    b, c, s = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
    angle = 2 * math.pi * hue * rng.uniform(-1, 1)
    if not any((brightness, contrast, saturation, hue)):
        return image
    mean = cv2.mean(image)[: image.shape[2]]
    if image.shape[2] == 1:
        matrix, gray = np.eye(1), mean[0]
    else:
        matrix = _rotation(angle) @ (s * np.eye(3) + (1 - s) * _LUMA[None, :])
        gray = float(_LUMA @ mean)
    shift = matrix.sum(1, keepdims=True) * (b * (1 - c) * gray)
    affine = np.hstack([b * c * matrix, shift])
    return _channels(cv2.transform(image, affine))


def augment(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    crop_px: tuple[int, int] | None = None,
    flip: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, crop, horizontal flip and color jitter, in this order.

    Args:
        rng: random generator.
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        scale: smallest and largest factor of the size; (1, 1) for no scaling.
        crop_px: (height, width) of the result, in pixels; None for the image's own.
        flip: probability of a horizontal flip.
        brightness: see `jitter_colors`; 0 for none.
        contrast: see `jitter_colors`; 0 for none.
        saturation: see `jitter_colors`; 0 for none.
        hue: see `jitter_colors`; 0 for none.

    Returns:
        image uint8 [*crop_px, C] and label uint8 [*crop_px].

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be 0 < smallest <= largest, not {scale}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is a probability, 0 to 1, not {flip}")
    size = label.shape if crop_px is None else tuple(crop_px)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"crop_px must be a height and a width, not {crop_px}")
    image, label = random_scale_crop(rng, image, label, scale=scale, crop_px=size)
    if rng.uniform() < flip:
        image, label = _channels(cv2.flip(image, 1)), cv2.flip(label, 1)
    image = jitter_colors(
        rng,
        image,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
    return image, label


_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def _rotation(angle: float) -> np.ndarray:
    """The rotation of RGB space about the gray axis, [3, 3]."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cos * np.eye(3) + sin * cross + (1 - cos) / 3


def _check_sizes(array: np.ndarray, size: tuple[int, int]) -> None:
    if not array.size or min(size) < 1:
        raise ValueError(
            f"cannot resize {array.shape[0]}x{array.shape[1]} to {size[0]}x{size[1]} "
            "(height x width); both must be at least 1x1"
        )


def _channels(image: np.ndarray) -> np.ndarray:
    """Restores the axis of a single channel, which OpenCV drops."""
    return image[..., None] if image.ndim == 2 else image
