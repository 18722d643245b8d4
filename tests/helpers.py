"""What several test files need."""

from typing import Any

import numpy as np

from jaxseg.metadata import RunMetadata
from jaxseg.ops.image_normalization import Normalization

NAMES = ("road", "sky", "tree")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 90, 0))
NORMALIZATION = Normalization((120.0,), (60.0,))


def make_metadata(**changes: Any) -> RunMetadata:
    """The description of a network that tells three classes apart."""
    fields: dict[str, Any] = {
        "model": {"name": "net"},
        "class_names": NAMES,
        "palette": PALETTE,
        "normalization": NORMALIZATION,
    }
    return RunMetadata(**fields | changes)


def draw_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)
