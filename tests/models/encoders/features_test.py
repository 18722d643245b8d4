"""Merging levels: what opens a stride comes from its first level, the map from its last."""

import jax.numpy as jnp

from jaxseg.models.encoders import Features


def test_merged_by_hand():
    maps = tuple(jnp.full((1, n, n, 1), i) for i, n in enumerate((8, 4, 4, 2, 2, 2)))
    pooled = (None, "p1", None, "p3", None, None)
    places = (None, "i1", None, "i3", None, None)
    features = Features(maps, pooled, places, (1, 2, 2, 4, 4, 4)).merged()
    assert features.strides == (1, 2, 4)
    assert [int(x.max()) for x in features.maps] == [0, 2, 5]
    assert features.sizes == ((8, 8), (4, 4), (2, 2))
    assert features.pooled == (None, "p1", "p3")
    assert features.places == (None, "i1", "i3")


def test_levels_of_their_own_strides_stay():
    features = Features((jnp.zeros((1, 2, 2, 1)),), (None,), (None,), (4,))
    assert features.merged().strides == (4,)
