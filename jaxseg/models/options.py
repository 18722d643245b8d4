"""The options that all layers of a network share."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class LayerOptions:
    """The options that all layers of a network share, passed on as one object.

    Builders, and the modules that they are made of, have an argument `options`, hand it
    on unchanged, and use the fields that concern them.

        ConvBlock((64, 64), options=LayerOptions(dtype="bfloat16"))

    Attributes:
        dtype: floating type of the computation, as a type or its name.
        param_dtype: floating type of the parameters.
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
            BatchNorm averages over it, and dropout masks do not depend on the split.
        remat: whether the activations of every stage are recomputed for the gradient
            (rematerialization), which saves memory and costs time.

    Raises:
        ValueError: if a type is not floating.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self):
        # So that options, and modules that have them, are equal for "float32" and float32.
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, floating_dtype(name, getattr(self, name)))

    @property
    def dtypes(self) -> dict[str, Any]:
        """The keyword arguments of layers such as `nn.Conv` and `nn.LayerNorm`."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def norm_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of `nn.BatchNorm`."""
        return self.dtypes | {"axis_name": self.axis_name}


def floating_dtype(name: str, value: DTypeLike) -> jnp.dtype:
    """Checks a floating type.

    Args:
        name: of the argument, for the message.
        value: a type or its name, such as "bfloat16".

    Returns:
        The type.

    Raises:
        ValueError: if it is unknown or not floating.
    """
    try:
        dtype = (
            None if value is None else jnp.dtype(value)
        )  # NumPy's default is float64
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name}={value!r} is not a floating type; use float32, bfloat16 or "
            "float16."
        )
    return dtype
