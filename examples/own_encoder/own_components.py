"""A custom encoder, loss and data set, registered with jaxseg.

This file uses jaxseg only by importing it, so it could be a separate package.
"""

from collections.abc import Iterator

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg.data.datasets import Example, SegmentationBuilder
from jaxseg.models.encoders import Features
from jaxseg.models.layers import Conv
from jaxseg.models.options import LayerOptions


@jaxseg.register("encoder", "strided")
class Strided(nn.Module):
    """Strided convolutions, each of which halves the image and doubles the channels.

    Attributes:
        width: channels of the first level.
        levels: number of levels; level i has the stride 2^(i + 1).
        options: types and so on, which the whole network shares.
    """

    width: int = 16
    levels: int = 3
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, finest first."""
        x, maps = image, []
        for level in range(self.levels):
            width = self.width * 2**level
            x = Conv(width, (3, 3), strides=2, **self.options.dtypes)(x)
            x = nn.relu(nn.BatchNorm(not train, **self.options.norm_kwargs)(x))
            maps.append(x)
        strides = tuple(2 ** (level + 1) for level in range(self.levels))
        return Features.without_pooling(maps, strides)


@jaxseg.register("loss", "my_focal")
def my_focal(
    logits: jax.Array, label: jax.Array, *, gamma: float = 2.0
) -> tuple[jax.Array, jax.Array]:
    """Focal loss, -(1 - p)^gamma log p with p the probability of the label's class.

    Args:
        logits: [B, H, W, K].
        label: integers [B, H, W]; 255 is void.
        gamma: weight of pixels that are classified wrongly; 0 for cross-entropy.

    Returns:
        The sum over the pixels that are not void, and their number.
    """
    valid = label != 255
    # Void pixels must not change the gradient, whatever their logits are.
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    log_p = jax.nn.log_softmax(logits)
    target = jax.nn.one_hot(label, logits.shape[-1])  # 0 for void
    log_p = jnp.sum(target * log_p, axis=-1)
    loss = -((1 - jnp.exp(log_p)) ** gamma) * log_p
    return jnp.sum(loss, where=valid), jnp.sum(valid, dtype=jnp.float32)


@jaxseg.register("dataset", "ellipses")
class Ellipses(SegmentationBuilder, skip_registration=True):
    """Light ellipses on a dark, noisy background.

    Args:
        data_dir: where the prepared data is written.
        size: height and width in pixels.
        examples_per_split: number of images in each of `train` and `val`.
    """

    name = "ellipses"
    class_names = ("background", "ellipse")
    palette = ((40, 40, 40), (230, 160, 40))
    split_names = ("train", "val")

    def __init__(self, *, data_dir: str, size: int = 32, examples_per_split: int = 100):
        self.size, self.count = size, examples_per_split
        super().__init__(data_dir=data_dir)

    def num_examples(self, split: str) -> int:
        """Number of images of a split."""
        return self.count

    def identity(self) -> dict:
        """What the prepared data depends on: if it changes, data is prepared again."""
        return {"size": self.size, "count": self.count}

    def examples(self, split: str) -> Iterator[Example]:
        """Draws the images of a split."""
        rng = np.random.default_rng(self.split_names.index(split))
        for index in range(self.count):
            label = np.zeros((self.size, self.size), np.uint8)
            center, axes = rng.integers(self.size, size=2), rng.integers(4, 12, size=2)
            angle = int(rng.integers(180))
            cv2.ellipse(label, center.tolist(), axes.tolist(), angle, 0, 360, 1, -1)
            noise = rng.normal(0, 20, (self.size, self.size, 3))
            image = np.clip(60 + 100 * label[..., None] + noise, 0, 255)
            _, png = cv2.imencode(".png", image.astype(np.uint8))
            yield Example(f"{split}_{index:04}", png.tobytes(), label)
