"""Sums over devices."""

from typing import Any

import jax


def psum_over(tree: Any, axis_name: str | None) -> Any:
    """Sums arrays over a mapped axis; returns them unchanged if it is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
