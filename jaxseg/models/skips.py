"""Skips: connections from an encoder level to the decoder level of the same size."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.layers import Conv
from jaxseg.models.options import LayerOptions
from jaxseg.ops.resize import crop_to, resize_bilinear

Meet = Callable[[jax.Array, tuple[int, int]], jax.Array]


def crop_center(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops a map to its center, as U-Net does in its skips.

    Args:
        x: [B, H, W, C].
        size: height and width of the result, in cells.

    Returns:
        [B, *size, C]; of an odd number of rows or columns, one more is removed at the
        bottom or right.
    """
    _, height, width, _ = x.shape
    return crop_to(x, size, ((height - size[0]) // 2, (width - size[1]) // 2))


class Skip(nn.Module):
    """The base class of skips, which are called as `(x, level, train=...)`.

    Attributes:
        meet: function that resizes or crops the level to the size of `x` if they
            differ, called as `(level, size)`: `resize_bilinear`, `crop_center`, or
            `crop_to` with an `offset`.
        options: see `LayerOptions`.
    """

    meet: Meet = resize_bilinear
    options: LayerOptions = LayerOptions()

    def _matched(self, level, x):
        size = x.shape[1:3]
        return level if level.shape[1:3] == size else self.meet(level, size)

    def _project(self, features, name, **kwargs):
        return Conv(
            features,
            (1, 1),
            **self.options.dtypes,
            name=name,
            **kwargs,
        )


class NoSkip(Skip):
    """No skip. SegNet's decoder uses only the pooling places of the encoder."""

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array, *, train: bool) -> jax.Array:
        """Returns `x` [B, H, W, C] unchanged."""
        del level, train
        return x


class Sum(Skip):
    """Adds the level to the map: x + project(scale * level).

    Attributes:
        project: which of the two a 1x1 convolution maps to the channels of the other:
            "level", as in FCN; "map", only if the channels differ, as in FC-ResNet; or
            "none", if the channels are equal.
        scale: factor on the level before its projection; FCN-8s-atonce has 0.01 and
            0.0001.
        kernel_init: initializer of the projection; zeros in FCN.

    Source: FCN, sec. 4.2, https://arxiv.org/abs/1411.4038.
    """

    project: str = "level"
    scale: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    def __post_init__(self):
        if self.project not in ("level", "map", "none"):
            raise ValueError(f'project={self.project!r}: use "level", "map" or "none".')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array, *, train: bool) -> jax.Array:
        """Adds `level` [B, h, w, D] to `x` [B, H, W, C].

        Returns:
            [B, H, W, C], or [B, H, W, D] if the map is projected.

        Raises:
            ValueError: if `project` is "none" and the channels differ.
        """
        del train
        level = self.scale * level
        if self.project == "level":
            # Projected before it is resized, as this usually reduces its channels.
            level = self._project(x.shape[-1], "project", kernel_init=self.kernel_init)(
                level
            )
        elif x.shape[-1] != level.shape[-1]:
            if self.project == "none":
                raise ValueError(
                    f"The level has {level.shape[-1]} channels and the map "
                    f'{x.shape[-1]}: set project="level" or "map", or let this level '
                    f"of the decoder have {level.shape[-1]} channels."
                )
            x = self._project(level.shape[-1], "project", kernel_init=self.kernel_init)(
                x
            )
        return x + self._matched(level, x)


class Concat(Skip):
    """Concatenates the channels of the map and of the level.

    Attributes:
        adapt: module applied to the level first, called as `(level, train=...)`, such
            as DeepLab v3+'s 1x1 convolution to 48 channels; None for none.

    Source: U-Net, sec. 2, https://arxiv.org/abs/1505.04597.
    """

    adapt: nn.Module | None = None

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array, *, train: bool) -> jax.Array:
        """Maps `x` [B, H, W, C] and `level` [B, h, w, D] to [B, H, W, C + D']."""
        if self.adapt is not None:
            level = self.adapt(level, train=train)
        return jnp.concatenate([x, self._matched(level, x)], axis=-1)


class Gated(Skip):
    """`Concat` with an attention gate, which weights each cell of the level.

        gate = sigmoid(w . relu(level V + x U))

    Attributes:
        features: channels inside the gate; by default half as many as the level.

    Source: Oktay et al., Attention U-Net, https://arxiv.org/abs/1804.03999.
    """

    features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array, *, train: bool) -> jax.Array:
        """Maps `x` [B, H, W, C] and `level` [B, h, w, D] to [B, H, W, C + D]."""
        del train
        level = self._matched(level, x)
        features = self.features or max(level.shape[-1] // 2, 1)
        hidden = self._project(features, "level")(level)
        hidden = hidden + self._project(features, "map", use_bias=False)(x)
        gate = nn.sigmoid(self._project(1, "gate")(nn.relu(hidden)))
        return jnp.concatenate([x, gate * level], axis=-1)


SKIPS = {"concat": Concat, "gated": Gated, "none": NoSkip, "sum": Sum}
