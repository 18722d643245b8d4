"""Probabilities and their logarithms."""

import jax
import jax.numpy as jnp

TINY = float(jnp.finfo(jnp.float32).tiny)
"""Smallest normal float32: a floor that keeps logarithms finite and changes nothing
else."""


def log_probabilities(probabilities: jax.Array, floor: float = TINY) -> jax.Array:
    """Logarithms that stay finite: `log(max(p, floor))`.

    Args:
        probabilities: float32, any shape, in [0, 1].
        floor: smaller probabilities are replaced by this one.

    Returns:
        Logarithms, float32, same shape.
    """
    return jnp.log(jnp.maximum(probabilities, floor))
