"""Variables of any model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = dict[str, Any]
"""Collections by name, as linen has them: `params` and, with BatchNorm, `batch_stats`."""


def initial_variables(
    module: nn.Module, key: jax.Array, channels: int = 3
) -> dict[str, Any]:
    """Variables of any model, drawn for an image of a size that it takes.

    Args:
        module: a segmenter or a classifier.
        key: random key.
        channels: of the image.
    """
    # U-Net without padding takes certain sizes alone; 224 pixels do for all others,
    # for DeconvNet and for classifiers with dense layers too.
    input_size = getattr(module, "input_size", None)
    side = 224 if input_size is None else input_size(32)[0]
    return module.init(key, jnp.zeros((1, side, side, channels)), train=False)


def abstract_variables(module: nn.Module, channels: int = 3) -> dict[str, Any]:
    """Shapes and types of a model's variables; nothing is computed."""
    return jax.eval_shape(
        lambda: initial_variables(module, jax.random.key(0), channels)
    )
