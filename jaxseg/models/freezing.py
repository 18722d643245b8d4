"""BatchNorm layers that keep their statistics while the rest of a network trains."""

import fnmatch
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax


def frozen_layers(batch_stats: Any, patterns: Sequence[str]) -> frozenset[str]:
    """The BatchNorm layers that the patterns name.

    Args:
        batch_stats: a model's statistics, concrete or abstract.
        patterns: shell globs over the whole path of a layer, "encoder/stage1/bn1"; `*`
            also crosses "/".

    Returns:
        The paths of all layers that match one.

    Raises:
        ValueError: if a pattern matches no layer.
    """
    layers = sorted(
        {layer_path(path) for path, _ in jax.tree.leaves_with_path(batch_stats)}
    )
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            known = ", ".join(layers[:: len(layers) // 12 + 1]) or "none at all"
            raise ValueError(
                f"The pattern {pattern!r} matches no BatchNorm layer; of the model's "
                f"{len(layers)} there are {known}."
            )
    return frozenset(
        layer
        for layer in layers
        if any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)
    )


def freeze(layers: frozenset[str]) -> AbstractContextManager:
    """While it lasts, these BatchNorm layers do in training what they do in inference.

    They normalise by their running statistics, which stay as they are. (Statistics that
    merely stay, under a network trained on the batch's own, would fit it no more.)
    Their scales and biases are parameters like others.

    Args:
        layers: paths, from `frozen_layers`.

    Returns:
        A context for calls of `model.apply`.
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        # A layer is known by its path; `isinstance` keeps out what wraps or holds it.
        if not (isinstance(module, nn.BatchNorm) and "/".join(module.path) in layers):
            return call(*args, **kwargs)
        inference = module.clone(parent=None, use_running_average=True)
        return inference.apply(module.variables, *args, **kwargs)

    return nn.intercept_methods(intercept)


def layer_path(path: tuple[Any, ...]) -> str:
    """The path of the layer that a leaf of the variables belongs to."""
    return jax.tree_util.keystr(path[:-1], simple=True, separator="/")
