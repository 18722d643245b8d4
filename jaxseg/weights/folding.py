"""BatchNorm folded into the convolutions before it, for inference."""

from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxseg.models.layers import ConvTranspose
from jaxseg.utils.trees import flatten, replace_leaves
from jaxseg.weights.mapping import WeightsError

LINEAR = (nn.Conv, nn.ConvTranspose, nn.Dense, ConvTranspose)
"""Layers whose kernels have the output's channels last, whatever their groups."""


def fold_batch_norm(
    model: nn.Module, variables: Any, image_shape: tuple[int, int, int] = (64, 64, 3)
) -> Any:
    """Variables with which the same module gives the same, without its statistics.

    In inference a BatchNorm behind y = w x + b is y' = g y + d, with

        g = scale / sqrt(var + epsilon)    d = bias - g mean

    so w becomes g w and, where the layer has a bias, b becomes g b + d. The BatchNorm
    is left with mean 0, scale 1, var 1 - epsilon and the bias 0: the identity. Where
    the layer has no bias the BatchNorm keeps d as its own, and only shifts.

    Which layer stands before which BatchNorm, and whether nothing else sees what it
    gives, is read from the traced computation and not from names.

    Args:
        model: called as `model.apply(variables, image, train=False)`.
        variables: of the model, float32.
        image_shape: (H, W, C) of an image that it takes, for the trace alone.

    Returns:
        Variables of the same structure, as NumPy arrays where they changed. They are
        not for training: its statistics would be those of other numbers.

    Raises:
        WeightsError: if there is a BatchNorm that cannot be folded: one behind
            something else than a convolution or dense layer, such as one before its
            convolution, or behind one whose output also goes elsewhere, or which is
            used more than once; all of them are named.
    """
    leaves, folded = flatten(variables), {}
    pairs = _pairs(model, variables, image_shape)
    for norm, (layer, epsilon) in pairs.items():
        kernel, bias = f"params/{layer}/kernel", f"params/{layer}/bias"
        scale, shift = f"params/{norm}/scale", f"params/{norm}/bias"
        mean, var = f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"
        # In float64, so that the only rounding is that of the result.
        old = {
            path: np.asarray(leaves[path], np.float64)
            for path in (kernel, bias, scale, shift, mean, var)
            if path in leaves
        }
        g = old[scale] / np.sqrt(old[var] + epsilon)
        d = old[shift] - g * old[mean]
        new = {
            kernel: old[kernel] * g,
            scale: np.ones_like(g),
            mean: np.zeros_like(g),
            var: np.full_like(g, 1 - epsilon),
        }
        if bias in old:
            new |= {bias: g * old[bias] + d, shift: np.zeros_like(d)}
        else:
            new |= {shift: d}
        folded |= {path: x.astype(leaves[path].dtype) for path, x in new.items()}
    return replace_leaves(variables, folded)


def _pairs(model, variables, image_shape) -> dict[str, tuple[str, float]]:
    """From each BatchNorm's path to that of the layer before it, and its epsilon."""
    epsilons, inside = {}, []

    def mark(call, args, kwargs, context):
        module = context.module
        path = "/".join(module.path)
        # A class calls its parent's method under the same path: once is enough.
        if context.method_name != "__call__" or path in inside:
            return call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            epsilons[path] = module.epsilon
            x, *rest = args
            return call(checkpoint_name(x, f"into {path}"), *rest, **kwargs)
        if isinstance(module, LINEAR):
            inside.append(path)
            y = call(*args, **kwargs)
            inside.pop()
            return checkpoint_name(y, f"from {path}")
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    with nn.intercept_methods(mark):
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
            variables, image
        )

    before, calls = {}, Counter()
    for jaxpr in _nested(traced.jaxpr):
        uses = Counter(
            id(var)
            for var in (*jaxpr.outvars, *(v for e in jaxpr.eqns for v in e.invars))
        )
        marked = {}
        for eqn in jaxpr.eqns:
            if eqn.primitive.name != "name":
                continue
            way, _, path = eqn.params["name"].partition(" ")
            calls[path] += 1
            if way == "from":
                marked[id(eqn.outvars[0])] = path
            elif uses[id(eqn.invars[0])] == 1:
                before[path] = marked.get(id(eqn.invars[0]))
    leaves = flatten(variables)
    wrong = [
        norm
        for norm in epsilons
        if before.get(norm) is None
        or calls[norm] > 1
        or calls[before[norm]] > 1
        # A kernel may be a constant, and a BatchNorm without parameters.
        or f"params/{before[norm]}/kernel" not in leaves
        or not {f"params/{norm}/scale", f"params/{norm}/bias"} <= leaves.keys()
    ]
    if wrong:
        raise WeightsError(
            "These BatchNorm layers cannot be folded, as they do not stand alone behind "
            f"one convolution or dense layer: {', '.join(sorted(wrong))}."
        )
    return {norm: (before[norm], epsilon) for norm, epsilon in epsilons.items()}


def _nested(jaxpr):
    """A program and all those that its steps call, such as a rematerialized stage."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _nested(inner)
