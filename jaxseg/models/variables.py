"""The variables of a model: initialization, and shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = dict[str, Any]
"""Linen's collections by name: `params` and, with BatchNorm, `batch_stats`."""

CALLS_PER_ARRAY, MIN_CALLS = 20, 2_000
"""Calls of layers that a model in a file may make, by the number of its arrays."""


def initial_variables(
    module: nn.Module, key: jax.Array, channels: int = 3
) -> Variables:
    """Initializes the variables of any model, with an image of a valid size.

    Args:
        module: a segmentation model or a classifier.
        key: random key.
        channels: number of channels of the image.
    """
    # U-Net without padding works with certain sizes only; all other models accept 224
    # pixels, DeconvNet and classifiers with dense layers too.
    input_size = getattr(module, "input_size", None)
    side = 224 if input_size is None else input_size(32)[0]
    # Compiled as one; op by op, each of them would be compiled, the network's too.
    init = jax.jit(partial(module.init, train=False))
    return dict(init(key, jnp.zeros((1, side, side, channels))))


def abstract_variables(module: nn.Module, channels: int = 3) -> Variables:
    """The shapes and types of a model's variables; nothing is computed.

    Args:
        module: a segmentation model or a classifier.
        channels: number of channels of the image.
    """
    return jax.eval_shape(
        lambda: initial_variables(module, jax.random.key(0), channels)
    )


@contextmanager
def limited_calls(most: int) -> Iterator[None]:
    """Stops building or tracing models that call more layers than this.

    Args:
        most: number of calls of modules in the block.

    Raises:
        ValueError: in the block, at the first call beyond.
    """
    calls = count(1)

    def check(call, args, kwargs, context):
        if next(calls) > most:
            raise ValueError(f"the model has more than {most} layers.")
        return call(*args, **kwargs)

    with nn.intercept_methods(check):
        yield
