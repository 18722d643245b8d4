"""The layers that every model here shares, and how its stages are run."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseg.ops.convolution import conv_transpose
from jaxseg.ops.partition import pin

Activation = Callable[[jax.Array], jax.Array]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, sqrt(2 / fan_in)), not truncated: Caffe's `msra`."""

caffe_gaussian = nn.initializers.normal(0.01)
"""N(0, 0.01): Caffe's `gaussian` as DeconvNet and DeepLab use it."""

batch_norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""The papers' BatchNorm in PyTorch's numbers (momentum 0.9 here is 0.1 there).

caffe-segnet and DeconvNet print epsilon 1e-9, which only amplifies the rounding noise
of dead channels.
"""


class Dropout(nn.Module):
    """Zeroes values at random and scales the others up, one key a sample.

    A sample's mask depends on the step's key and on the sample's position in the
    global batch alone, so the same batch is dropped alike on one device and on many.

    Attributes:
        rate: share of values that are dropped, in [0, 1).
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
    """

    rate: float
    axis_name: str | None = None

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout={self.rate}: give a share, in [0, 1).")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, ...] to [B, ...]; the identity when not training."""
        if not train or self.rate == 0.0:
            return x
        first = 0
        if self.axis_name is not None:
            first = jax.lax.axis_index(self.axis_name) * x.shape[0]
        key = self.make_rng("dropout")
        keys = jax.vmap(partial(jax.random.fold_in, key))(
            first + jnp.arange(x.shape[0])
        )
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(
            keys
        )
        return jnp.where(keep, x / (1 - self.rate), 0)


def run_stage(
    stage: nn.Module, *arrays: jax.Array, train: bool, remat: bool
) -> jax.Array:
    """Calls a stage of a network, and pins what it returns to its place on the mesh.

    With `remat` its activations are computed again for the gradient.

    Args:
        stage: module called as `stage(*arrays, train=train)`.
        *arrays: its inputs.
        train: whether batch statistics and dropout are on.
        remat: trade a second forward pass for the memory of the stage's inside.

    Returns:
        What the stage returns.
    """

    def call(stage, *arrays):
        return jax.tree.map(pin, stage(*arrays, train=train))

    return (nn.remat(call) if remat else call)(stage, *arrays)


def _promote(inputs, kernel, bias, *, dtype):
    return inputs.astype(dtype), kernel.astype(dtype), bias


class Conv(nn.Conv):
    """`nn.Conv` with its maps pinned to the mesh and its bias added in float32.

    A bias' gradient is a sum over all pixels of the batch, and a backend that sums
    bfloat16 in bfloat16, as the CPU's does, loses most of it.
    """

    promote_dtype: Callable[..., tuple] = _promote

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features] in `dtype`."""
        stride, kernel, dilation = (
            n[0] if isinstance(n, Sequence) else n or 1
            for n in (self.strides, self.kernel_size, self.kernel_dilation)
        )
        lies = partial(pin, rows=x.shape[1] // stride, reach=kernel // 2 * dilation)
        return lies(super().__call__(lies(x)).astype(self.dtype))


class ConvTranspose(nn.Module):
    """A transposed convolution with a fast gradient: every cell lays down a kernel.

    Takes the arguments of `nn.Conv`, so that a block can have it in a convolution's
    place.

    Attributes:
        features: output channels.
        kernel_size: height and width of the kernel, in cells of the output; a square.
        strides: how many times larger the output is.
        padding: "SAME" for h * strides rows from h; "VALID" for all that the kernels
            cover, (h - 1) * strides + kernel.
        per_channel: whether channels are kept apart; `features` are then the input's.
        use_bias: whether a bias is added.
        kernel_init: initializer of the kernel [kh, kw, Cin, Cout], or [kh, kw, C].
        fixed: whether the kernel is a constant, what `kernel_init` gives, rather than
            a parameter.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: str = "SAME"
    per_channel: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None
    fixed: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if len(set(self.kernel_size)) != 1 or self.kernel_size[0] < self.strides:
            raise ValueError(
                f"kernel_size={self.kernel_size} with strides={self.strides}: give a "
                "square at least as large as the stride, or the output has gaps."
            )
        if self.padding not in ("SAME", "VALID"):
            raise ValueError(f'padding={self.padding!r}: take "SAME" or "VALID".')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H * strides, W * strides, features] if "SAME".

        Raises:
            ValueError: if channels are kept apart and `features` is another number.
        """
        _, h, w, channels = x.shape
        if self.per_channel and channels != self.features:
            raise ValueError(
                f"A convolution per channel keeps its {channels} channels; it cannot "
                f"give {self.features}. Set per_channel=False, or the same number."
            )
        # Each output cell sees one in strides**2 of a kernel's cells.
        init = self.kernel_init or nn.initializers.variance_scaling(
            2.0 * self.strides**2, "fan_in", "normal"
        )
        shape = (*self.kernel_size, channels)
        if not self.per_channel:
            shape += (self.features,)
        if self.fixed:
            kernel = init(jax.random.key(0), shape, self.param_dtype)
        else:
            kernel = self.param("kernel", init, shape, self.param_dtype)
        excess = self.kernel_size[0] - self.strides if self.padding == "SAME" else 0
        x = conv_transpose(
            pin(x).astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            padding=excess // 2,
        )
        if self.padding == "SAME":  # an odd excess leaves one at the end
            x = x[:, : h * self.strides, : w * self.strides]
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
            x = (x + bias.reshape(1, 1, 1, self.features)).astype(self.dtype)
        return pin(x, rows=h)


def depthwise_conv(features: int, kernel_size: tuple[int, int], **kwargs) -> Conv:
    """A convolution of each channel for itself, with the arguments of `nn.Conv`.

    Args:
        features: channels, of the input as of the output.
        kernel_size: height and width, in cells.
        **kwargs: what else `nn.Conv` takes.

    Returns:
        A linen module from [B, H, W, features] to [B, H, W, features].
    """
    return Conv(features, kernel_size, feature_group_count=features, **kwargs)
