"""ConvNeXt against torchvision's, and its stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.classifier import create_classifier
from jaxseg.models.encoders.convnext import Block
from jaxseg.weights.torchvision import mappings
from tests.helpers import init_variables


def test_equals_torchvision(torchvision, assert_equals_torch):
    reference = torchvision.models.convnext_tiny()
    model = create_classifier("convnext_tiny")
    (mapping,) = mappings({"name": "classifier", "encoder": "convnext_tiny"})
    # Tight enough to tell GELU from its approximation.
    assert_equals_torch(model, reference, mapping, 64, tolerance=1e-5)


def test_a_sample_skips_a_block_whole_or_not_at_all():
    block = Block(drop=0.5)
    x = jax.random.normal(jax.random.key(0), (16, 5, 5, 4))
    params = init_variables(block, x, seed=1)["params"]
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
