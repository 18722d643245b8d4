"""Gradients of convolutions whose rows are split over devices, however they divide."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.layers import Conv
from jaxseg.ops.partition import gather, pin
from jaxseg.parallel.mesh import create_parallel


class Net(nn.Module):
    """Convolutions (kernel, stride) in a row."""

    layers: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x):
        for kernel, stride in self.layers:
            x = nn.relu(Conv(3, (kernel, kernel), strides=stride)(x))
        return x


HALVES = (3, 2)


@pytest.mark.parametrize(
    "rows, layers, mesh",
    [
        (64, (HALVES, HALVES), (1, 4)),
        # 18 rows over 4 devices, then 9: split by 2, the second gradient was doubled.
        (36, (HALVES, HALVES), (1, 4)),
        (60, (HALVES, HALVES, HALVES), (1, 4)),
        (37, (HALVES, HALVES), (2, 2)),
        # A kernel over the whole height: the gradients before it were doubled.
        (24, (HALVES, HALVES, HALVES, (7, 1)), (2, 2)),
    ],
)
def test_gradients_are_those_of_one_device(rows, layers, mesh):
    net = Net(layers)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, rows, 16, 3)).astype(np.float32)
    params = net.init(jax.random.key(0), image)

    def step(params, batch, axis_name):
        del axis_name
        return jax.grad(lambda p: jnp.sum(net.apply(p, batch["image"]) ** 2))(params)

    def gradient(parallel):
        placed = jax.device_put(params, parallel.replicated)
        return parallel.compile(step)(placed, parallel.place({"image": image}))

    expected = gradient(create_parallel(data=1))
    got = gradient(create_parallel(data=mesh[0], space=mesh[1]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_where_there_is_no_mesh_nothing_is_done():
    x = jnp.ones((1, 2, 2, 1))
    assert pin(x) is x
    assert gather(x) is x
