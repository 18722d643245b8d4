"""Meshes: which there are, what they refuse, and where a state's arrays lie."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxseg.parallel.mesh import create_parallel


@pytest.mark.parametrize(
    "data, space, shape", [(-1, 1, (4, 1)), (-1, 2, (2, 2)), (1, -1, (1, 4))]
)
def test_the_rest_of_the_devices(data, space, shape):
    assert create_parallel(data=data, space=space).mesh.devices.shape == shape


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backend": "xmap"}, "jit, shard_map, pmap"),
        ({"data": 5}, "does not fit the 4 devices"),
        ({"data": 2, "space": 3}, "does not fit the 4 devices"),
        ({"space": 3}, "the other one must divide 4"),
        ({"data": 0}, "does not fit the 4 devices"),
        ({"data": -1, "space": -1}, "only one of them"),
        ({"backend": "pmap", "space": 2}, "space requires backend=jit"),
        ({"backend": "shard_map", "fsdp": True}, "fsdp requires backend=jit"),
    ],
)
def test_meshes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_parallel(**arguments)


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"batch_size=6 .* use 4 or 8"):
        create_parallel("jit", 4).check_batch(6)
    create_parallel("jit", 2, 2).check_batch(6)


def test_fsdp_splits_the_longest_axis_that_divides():
    parallel = create_parallel(data=4, fsdp=True)
    state = {
        "kernel": jnp.zeros((3, 3, 64, 128)),
        "odd": jnp.zeros((64, 30, 77)),
        "bias": jnp.zeros((128,)),
        "prime": jnp.zeros((71, 73)),
    }
    assert parallel.specs(state) == {
        "kernel": P(None, None, None, "data"),
        "odd": P("data"),
        "bias": P(),
        "prime": P(),
    }
    held = jax.device_put(
        state, jax.tree.map(lambda x: x.sharding, parallel.abstract(state))
    )
    assert held["kernel"].addressable_shards[0].data.shape == (3, 3, 64, 32)
    assert create_parallel(data=4).specs(state)["kernel"] == P()
