"""Random variables for any module."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_variables():
    """Fills a module's variables with random numbers, in no time even if it is deep."""

    def fill(module, image):
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), image, train=False)
        )
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            name = path[-1].key
            if name == "kernel":
                fan_in = np.prod(leaf.shape[:-1])
                x = rng.normal(scale=np.sqrt(2 / fan_in), size=leaf.shape)
            elif name in ("scale", "var"):
                x = rng.uniform(0.5, 1.5, leaf.shape)
            else:
                x = rng.uniform(-0.1, 0.1, leaf.shape)
            return x.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return fill
