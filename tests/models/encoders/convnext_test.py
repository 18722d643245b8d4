"""ConvNeXt against torchvision's, and its stochastic depth."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.classifier import create_classifier
from jaxseg.models.encoders.convnext import Block

LAYERS = {
    "": "",
    ".block.0": "/depthwise",
    ".block.2": "/norm",
    ".block.3": "/expand",
    ".block.5": "/project",
}


def _rename(name):
    if name.startswith("classifier"):
        return {"classifier.0": "head/norm", "classifier.2": "head/fc"}[name]
    index, inner, rest = re.fullmatch(r"features\.(\d)\.(\d+)(.*)", name).groups()
    level, inner = int(index) // 2 + 1, int(inner)
    if int(index) % 2:
        return f"encoder/stage{level}/block{inner + 1}{LAYERS[rest]}"
    parts = ("conv", "norm") if level == 1 else ("norm", "conv")
    return f"encoder/downsample{level}/{parts[inner]}"


def test_equals_torchvision(torchvision, assert_equals_torch):
    reference = torchvision.models.convnext_tiny()
    model = create_classifier("convnext_tiny")
    # Tight enough to tell GELU from its approximation.
    assert_equals_torch(model, reference, _rename, 64, tolerance=1e-5)


def test_a_sample_skips_a_block_whole_or_not_at_all():
    block = Block(drop=0.5)
    x = jax.random.normal(jax.random.key(0), (16, 5, 5, 4))
    params = block.init(jax.random.key(1), x, train=False)["params"]
    params["scale"] = jnp.ones(4)
    apply = jax.jit(
        lambda train: block.apply(
            {"params": params}, x, train=train, rngs={"dropout": jax.random.key(2)}
        ),
        static_argnums=0,
    )
    branch, kept = apply(False) - x, apply(True) - x
    for whole, part in zip(branch, kept):
        if np.any(part != 0):
            np.testing.assert_allclose(part, 2 * whole, rtol=1e-3, atol=1e-5)
    share = np.mean(np.any(kept != 0, axis=(1, 2, 3)))
    assert 0 < share < 1
