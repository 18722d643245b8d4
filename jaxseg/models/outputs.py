"""What a model returns in training: logits, auxiliary logits and batch statistics."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseg.models.options import floating_dtype
from jaxseg.models.variables import Variables


class AuxiliaryLogits(NamedTuple):
    """Logits of an auxiliary head, for deep supervision.

    Attributes:
        weight: factor on their loss; the main loss has 1.
        logits: [B, H, W, K].
    """

    weight: float
    logits: jax.Array


class TrainingOutput(NamedTuple):
    """The result of `apply_in_training`.

    Attributes:
        logits: [B, H, W, K].
        auxiliary: one for each auxiliary head; empty for a model without them.
        batch_stats: the updated statistics of the BatchNorm layers; empty without them.
    """

    logits: jax.Array
    auxiliary: tuple[AuxiliaryLogits, ...]
    batch_stats: Any


def with_logits_dtype(model: nn.Module, dtype: DTypeLike) -> nn.Module:
    """A copy of a model whose logits have another type.

    Args:
        model: a module with an attribute `logits_dtype`, or any that returns float32.
        dtype: of the logits.

    Raises:
        ValueError: if the model has no such attribute and the type is not float32.
    """
    dtype = floating_dtype("logits_dtype", dtype)
    if hasattr(model, "logits_dtype"):
        return model.clone(logits_dtype=dtype)
    if dtype != jnp.float32:
        raise ValueError(
            f"{type(model).__name__} has no attribute logits_dtype, so its logits "
            f"cannot be {dtype}; use float32."
        )
    return model


def apply_in_training(
    model: nn.Module, variables: Variables, image: jax.Array, dropout_key: jax.Array
) -> TrainingOutput:
    """Applies a model in training mode, together with its auxiliary heads.

    A model with auxiliary heads has a method `with_auxiliary(image, *, train)` that
    returns the logits and a tuple of `AuxiliaryLogits`, as `Segmenter` does. Any other
    linen module that returns logits works too.

    Args:
        model: called as `(image, train=...)`.
        variables: `params` and, with BatchNorm, `batch_stats`.
        image: [B, H, W, C].
        dropout_key: random key for dropout.

    Returns:
        The logits, the auxiliary logits and the updated batch statistics.
    """
    has_auxiliary = hasattr(model, "with_auxiliary")
    output, changed = model.apply(
        variables,
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
        method="with_auxiliary" if has_auxiliary else None,
    )
    logits, auxiliary = output if has_auxiliary else (output, ())
    return TrainingOutput(logits, auxiliary, changed.get("batch_stats", {}))
