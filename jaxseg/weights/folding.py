"""Folding of BatchNorm into the preceding convolutions, for inference."""

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
"""Layers whose kernels have the output channels last, with any number of groups."""


def fold_batch_norm(
    model: nn.Module, variables: Any, image_shape: tuple[int, int, int] = (64, 64, 3)
) -> Any:
    """Folds every BatchNorm into the layer before it; the module's output is unchanged.

    In inference a BatchNorm after y = w x + b computes y' = g y + d, where

        g = scale / sqrt(var + epsilon)    d = bias - g * mean

    so w becomes g w and, if the layer has a bias, b becomes g b + d. The BatchNorm gets
    mean 0, scale 1, var 1 - epsilon and bias 0: the identity. If the layer has no bias,
    the BatchNorm keeps d as its bias.

    The layer before each BatchNorm, and whether its output is used elsewhere, are found
    by tracing the computation, not by names.

    Args:
        model: called as `model.apply(variables, image, train=False)`.
        variables: of the model, float32.
        image_shape: (H, W, C) of an image, for tracing only.

    Returns:
        Variables of the same structure; changed ones are NumPy arrays. They are for
        inference only.

    Raises:
        WeightsError: if a BatchNorm cannot be folded, because it does not follow a
            convolution or dense layer, or because that layer is used more than once or
            its output is used elsewhere; names all of them.
    """
    leaves, folded = flatten(variables), {}
    pairs = _pairs(model, variables, image_shape)
    for norm, (layer, epsilon) in pairs.items():
        kernel, bias = f"params/{layer}/kernel", f"params/{layer}/bias"
        scale, shift = f"params/{norm}/scale", f"params/{norm}/bias"
        mean, var = f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"
        # In float64, so that only the result is rounded.
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
    """For the path of each BatchNorm, the path of the layer before it, and epsilon."""
    epsilons, inside = {}, []

    def mark(call, args, kwargs, context):
        module = context.module
        path = "/".join(module.path)
        # A class may call its parent's method under the same path; mark it once.
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
        # A kernel may be constant, and a BatchNorm may have no parameters.
        or f"params/{before[norm]}/kernel" not in leaves
        or not {f"params/{norm}/scale", f"params/{norm}/bias"} <= leaves.keys()
    ]
    if wrong:
        raise WeightsError(
            "These BatchNorm layers cannot be folded, because each must directly follow "
            "a convolution or dense layer whose output is not used elsewhere: "
            f"{', '.join(sorted(wrong))}."
        )
    return {norm: (before[norm], epsilon) for norm, epsilon in epsilons.items()}


def _nested(jaxpr):
    """A program and all programs nested in it, such as a rematerialized stage."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _nested(inner)
