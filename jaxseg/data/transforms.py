"""Training-time augmentation of an image together with its labels.

Pure functions on host arrays: all randomness comes from the generator passed in, and
uint8 stays uint8. Images are resized by area or linear interpolation, labels by the
nearest pixel under the same half-pixel convention, so the two stay aligned.
"""

import math

import cv2
import numpy as np

from jaxseg.data.images import IGNORE


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image, averaging where it shrinks and interpolating where it grows.

    Args:
        image: uint8 [H, W, C].
        size: height and width to give it.

    Returns:
        uint8 [*size, C].
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] and width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return _channels(cv2.resize(image, (width, height), interpolation=how))


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label map to the label of the nearest pixel, never mixing labels.

    Args:
        label: uint8 [H, W].
        size: height and width to give it.

    Returns:
        uint8 [*size].
    """
    height, width = size
    if label.shape == (height, width):
        return label
    # INTER_NEAREST rounds down, half a pixel off the linear interpolation's grid.
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def crop(
    image: np.ndarray,
    label: np.ndarray,
    offset: tuple[int, int],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window out of image and labels; it may reach over the edges.

    Beyond the edges the image repeats its last pixel (black would be an object of its
    own to the network) and the labels are void.

    Args:
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        offset: row and column of the window's first pixel; may be negative.
        size: height and width of the window.

    Returns:
        image uint8 [*size, C] and label uint8 [*size].
    """
    height, width = label.shape
    top, left = offset
    bottom, right = top + size[0], left + size[1]
    inside = np.s_[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    image, label = image[inside], label[inside]
    over = (
        max(-top, 0),
        max(bottom - height, 0),
        max(-left, 0),
        max(right - width, 0),
    )
    if any(over):
        image = cv2.copyMakeBorder(image, *over, cv2.BORDER_REPLICATE)
        label = cv2.copyMakeBorder(label, *over, cv2.BORDER_CONSTANT, value=IGNORE)
    return _channels(image), label


def random_scale_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    *,
    scale: tuple[float, float],
    crop_px: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Scales by a random factor and cuts a random window, without the detour of both.

    The window is cut first, in the image's own pixels, and only it is resized. An image
    smaller than the window is placed at random inside it (see `crop`).

    Args:
        rng: source of randomness.
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        scale: least and largest factor; drawn uniformly.
        crop_px: height and width of the result.

    Returns:
        image uint8 [*crop_px, C] and label uint8 [*crop_px].
    """
    factor = rng.uniform(*scale)
    window = [max(1, round(side / factor)) for side in crop_px]
    offset = []
    for side, extent in zip(window, label.shape):
        room = extent - side  # negative where the window is larger than the image
        offset.append(int(rng.integers(min(room, 0), max(room, 0), endpoint=True)))
    image, label = crop(image, label, tuple(offset), tuple(window))
    return resize_image(image, crop_px), resize_label(label, crop_px)


def jitter_colours(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue at random.

    All four are affine in a pixel's colour x, so they are one map, rounded and clipped
    once:

      x' = H S (b (c x + (1 - c) m))

    with b, c and the factor s of S drawn from 1 -+ the argument, m the image's mean
    grey, S = s I + (1 - s) grey, and H a turn about the grey axis.

    Args:
        rng: source of randomness.
        image: uint8 [H, W, 3], or [H, W, 1] of which only brightness and contrast
            change.
        brightness: half-width of the range of the factor b.
        contrast: half-width of the range of the factor c.
        saturation: half-width of the range of the factor s.
        hue: largest turn, as a share of the full circle.

    Returns:
        uint8, the shape of `image`.

    Raises:
        ValueError: on an argument out of range.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, amount in amounts.items():
        if not 0 <= amount <= 1:
            raise ValueError(f"{name} must be 0 to 1, found {amount}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must be 0 to 0.5 of the circle, found {hue}")
    # Drawn in any case, so that one of them does not change the others' luck.
    b, c, s = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
    angle = 2 * math.pi * hue * rng.uniform(-1, 1)
    if not any((brightness, contrast, saturation, hue)):
        return image
    mean = cv2.mean(image)[: image.shape[2]]
    if image.shape[2] == 1:
        matrix, grey = np.eye(1), mean[0]
    else:
        matrix = _turn(angle) @ (s * np.eye(3) + (1 - s) * _LUMA[None, :])
        grey = float(_LUMA @ mean)
    shift = matrix.sum(1, keepdims=True) * (b * (1 - c) * grey)
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
    """Random scale, crop, horizontal flip and colour jitter, in this order.

    Args:
        rng: source of randomness.
        image: uint8 [H, W, C].
        label: uint8 [H, W].
        scale: least and largest factor of size; (1, 1) leaves the size.
        crop_px: height and width of the result; None for the image's own.
        flip: probability of mirroring left and right.
        brightness: see `jitter_colours`; 0 for none.
        contrast: see `jitter_colours`; 0 for none.
        saturation: see `jitter_colours`; 0 for none.
        hue: see `jitter_colours`; 0 for none.

    Returns:
        image uint8 [*crop_px, C] and label uint8 [*crop_px].

    Raises:
        ValueError: on an argument out of range.
    """
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be 0 < least <= largest, found {scale}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is a probability, 0 to 1, found {flip}")
    size = label.shape if crop_px is None else tuple(crop_px)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"crop_px must be a height and a width, found {crop_px}")
    image, label = random_scale_crop(rng, image, label, scale=scale, crop_px=size)
    if rng.uniform() < flip:
        image, label = _channels(cv2.flip(image, 1)), cv2.flip(label, 1)
    image = jitter_colours(
        rng,
        image,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
    return image, label


_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def _turn(angle: float) -> np.ndarray:
    """The rotation of RGB space about the grey axis, [3, 3]."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cos * np.eye(3) + sin * cross + (1 - cos) / 3


def _channels(image: np.ndarray) -> np.ndarray:
    """Gives back the axis of a single channel, which OpenCV drops."""
    return image[..., None] if image.ndim == 2 else image
