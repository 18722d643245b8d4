"""U-Net's encoder: the paper's sizes, and where its dropout acts."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.encoders import unet


def test_valid_convolutions_leave_the_papers_sizes():
    encoder = unet(widths=(1, 1, 1, 1, 1), padding="VALID")
    features, _ = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), jnp.zeros((1, 572, 572, 1)), train=False
        )
    )
    assert [h for h, _ in features.sizes] == [568, 280, 136, 64, 28]


def test_the_two_deepest_maps_are_dropped_and_no_other(random_variables):
    encoder = unet(widths=(8, 8, 8, 8, 8))
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = random_variables(encoder, image)

    @jax.jit
    def apply(key):
        return encoder.apply(variables, image, train=True, rngs={"dropout": key})

    first, second = apply(jax.random.key(2)), apply(jax.random.key(3))
    alike = [bool(np.all(a == b)) for a, b in zip(first.maps, second.maps)]
    assert alike == [True, True, True, False, False]
    # The pooling sees what the skip sees.
    assert np.mean(first.maps[3] == 0) > 0.5
    assert np.all(np.isin(first.pooled[4], first.maps[3]))
    # What was dropped for the skip is not dropped again on the way down.
    stage = ConvBlock((8, 8), norm=None)
    params = variables["params"]["stage5"]
    whole = stage.apply({"params": params}, first.pooled[4], train=False)
    kept = first.maps[4] != 0
    np.testing.assert_allclose(
        first.maps[4], jnp.where(kept, 2 * whole, 0), rtol=1e-4, atol=1e-5
    )
