"""Blocks of convolutions, and the layers that every model here shares."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = jnp.dtype
Activation = Callable[[jax.Array], jax.Array]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, sqrt(2 / fan_in)), not truncated: Caffe's `msra`."""

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
    """Calls `stage`; with `remat` its activations are computed again for the gradient.

    Args:
        stage: module called as `stage(*arrays, train=train)`.
        *arrays: its inputs.
        train: whether batch statistics and dropout are on.
        remat: trade a second forward pass for the memory of the stage's inside.

    Returns:
        What the stage returns.
    """

    def call(stage, *arrays):
        return stage(*arrays, train=train)

    return (nn.remat(call) if remat else call)(stage, *arrays)


class ConvBlock(nn.Module):
    """Convolutions in a row, each with BatchNorm and an activation: conv, BN, ReLU.

    Attributes:
        features: output channels of each convolution, in order; may be empty.
        kernel: side of the square kernels, in cells.
        norm: makes the normalisation after each convolution, called with the arguments
            of `nn.BatchNorm`; None for none.
        activation: after each convolution; None for a linear block.
        dropout: rate of the dropout that ends the block.
        padding: "SAME" keeps the size; "VALID" takes kernel - 1 cells off it with
            every convolution.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.
    """

    features: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    activation: Activation | None = nn.relu
    dropout: float = 0.0
    padding: str = "SAME"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features[-1]]; smaller with "VALID"."""
        for i, features in enumerate(self.features, start=1):
            x = nn.Conv(
                features,
                (self.kernel, self.kernel),
                padding=self.padding,
                kernel_init=he_normal,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(
                    use_running_average=not train,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    axis_name=self.axis_name,
                    name=f"bn{i}",
                )(x)
            if self.activation is not None:
                x = self.activation(x)
        return Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
