"""Frozen BatchNorm: layers that keep their statistics while the network trains."""

import fnmatch
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax

from jaxseg.utils.trees import path_name


def frozen_layers(batch_stats: Any, patterns: Sequence[str]) -> frozenset[str]:
    """The BatchNorm layers that match a pattern.

    Args:
        batch_stats: a model's statistics, concrete or abstract.
        patterns: shell globs for the whole path of a layer, such as
            "encoder/stage1/bn1"; `*` also matches "/".

    Returns:
        The paths of all layers that match a pattern.

    Raises:
        ValueError: if a pattern matches no layer.
    """
    layers = sorted(
        {layer_path(path) for path, _ in jax.tree.leaves_with_path(batch_stats)}
    )
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            known = ", ".join(layers[:: len(layers) // 12 + 1])
            raise ValueError(
                f"The pattern {pattern!r} matches none of the model's {len(layers)} "
                f"BatchNorm layers{', such as ' if layers else ''}{known}."
            )
    return frozenset(
        layer
        for layer in layers
        if any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)
    )


def freeze(layers: frozenset[str]) -> AbstractContextManager:
    """A context in which BatchNorm layers behave in training as in inference.

    They normalize by their running statistics and do not update them. (If only the
    updates stopped, the network would be trained on the statistics of the batches, and
    the running ones would no longer fit it.) Their scales and biases are still trained.

    Args:
        layers: paths, from `frozen_layers`.

    Returns:
        A context for calls of `model.apply`.
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        # `isinstance` excludes modules with the same path that wrap the layer.
        if not (isinstance(module, nn.BatchNorm) and "/".join(module.path) in layers):
            return call(*args, **kwargs)
        inference = module.clone(parent=None, use_running_average=True)
        return inference.apply(module.variables, *args, **kwargs)

    return nn.intercept_methods(intercept)


def layer_path(path: tuple[Any, ...]) -> str:
    """The path of the layer that a leaf of the variables belongs to."""
    return path_name(path[:-1])
