"""Gaussian filtering of scattered points on the permutohedral lattice.

    y[i] = c * sum over j of exp(-|f_i - f_j|^2 / 2) * x[j],  approximately

for points f in d dimensions: splat the values to the corners of the simplices that
contain the points, blur along the lattice's d + 1 directions, and slice the values at
the points. The time is linear in the number of points. Only the corners of occupied
simplices are stored; what the blur would add elsewhere is lost. The factor c is the
same for all points.

Source: Adams, Baek and Davis, Fast high-dimensional filtering using the permutohedral
lattice, Eurographics 2010, in the form of Krähenbühl and Koltun's `permutohedral.cpp`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VERTICES_PER_POINT = (0.25, 1, 2)
"""Capacities for vertices, tried in this order. Photographs need 0.06 to 1.5 vertices
per point, depending on the kernel's width; the maximum, d + 1, is tried last."""


class Lattice(NamedTuple):
    """Points on the lattice, before memory for its vertices is allocated.

    A corner is one of the d + 1 corners of a point's simplex. Equal corners of several
    points are one vertex.

    Attributes:
        weight: barycentric coordinates of every point, float32 [N, d + 1]; zero for
            points that are not valid.
        vertex: number of each corner's vertex, below `num_vertices`, int32 [N, d + 1].
        owner: the corner that represents each vertex, int32 [N * (d + 1)]; only the
            first `num_vertices` are defined.
        key: hash key of each corner, a pair of uint32 [N * (d + 1)].
        table: hash table from the keys' slots to the corner that owns the vertex,
            int32, or -1 if the slot is empty.
        num_vertices: int32 scalar.
    """

    weight: jax.Array
    vertex: jax.Array
    owner: jax.Array
    key: tuple[jax.Array, jax.Array]
    table: jax.Array
    num_vertices: jax.Array


def build(features: jax.Array, valid: jax.Array) -> Lattice:
    """Finds the simplex of every point and numbers the vertices.

    Args:
        features: points in units of the kernel's standard deviation, float32 [N, d].
        valid: bool [N]; False for points to ignore, which create no vertices.

    Returns:
        The lattice. No gradient flows through it.

    Raises:
        ValueError: if there are no points, or they have no dimensions.
    """
    chex.assert_rank(features, 2)
    if 0 in features.shape:
        raise ValueError(f"features have shape {features.shape}; no axis may be empty.")
    n, d = features.shape
    chex.assert_shape(valid, (n,))
    key, weight = _simplices(features)
    present = jnp.repeat(valid, d + 1)
    table, slot = _insert(key, present)
    corner = jnp.arange(n * (d + 1), dtype=jnp.int32)
    owns = present & (table[slot] == corner)
    # Numbered in the order of the points, so that neighbors are close in memory.
    number = jnp.cumsum(owns, dtype=jnp.int32) - 1
    owner = jnp.where(owns, number, corner.size)
    owner = jnp.zeros_like(corner).at[owner].set(corner, mode="drop")
    vertex = jnp.where(present, number[table[slot]], 0).reshape(n, d + 1)
    weight = jnp.where(valid[:, None], weight, 0)
    return Lattice(weight, vertex, owner, key, table, number[-1] + 1)


def with_filter(lattice: Lattice, function: Callable[..., Any], *operands: Any) -> Any:
    """Calls `function(filter_, *operands)`, where `filter_` filters values [N, K].

    The number of vertices is known only at run time, so `function` is compiled for
    several capacities, and the smallest sufficient one runs. (Under `vmap` all of them
    run; map over images by `lax.map` instead.)

    Args:
        lattice: from `build`.
        function: a function of the filter and the operands.
        operands: arrays.

    Returns:
        What `function` returns.
    """
    n, corners = lattice.vertex.shape
    limits = [int(n * r) for r in VERTICES_PER_POINT if r < corners]
    # One more row than vertices: the last row stands for missing neighbors.
    capacities = [limit + 1 for limit in (*limits, n * corners)]

    def branch(capacity):
        def call(lattice, *operands):
            neighbors = _neighbors(lattice, capacity)

            def filter_(x):
                return _filter(lattice, neighbors, x)

            return function(filter_, *operands)

        return call

    which = jnp.sum(lattice.num_vertices >= jnp.array(capacities[:-1], jnp.int32))
    return lax.switch(which, [branch(c) for c in capacities], lattice, *operands)


def _filter(lattice, neighbors, x):
    """Splats, blurs and slices values [N, K]."""
    weight, vertex = lattice.weight, lattice.vertex
    capacity = neighbors.shape[-1]
    splat = weight[:, :, None] * x[:, None, :]
    values = jnp.zeros((capacity, x.shape[1]), x.dtype).at[vertex].add(splat)

    def blur(values, pair):
        return values + 0.5 * (_rows(values, pair[0]) + _rows(values, pair[1])), None

    # A scan, because XLA on CPUs fuses unrolled gathers and repeats their work.
    values, _ = lax.scan(blur, values, neighbors)
    corners = range(vertex.shape[1])
    return sum(_rows(values, vertex[:, k]) * weight[:, k, None] for k in corners)


def _rows(values, index):
    return values.at[index].get(mode="promise_in_bounds")


def _simplices(features):
    """Keys of the d + 1 corners around each point, and its barycentric coordinates."""
    d = features.shape[1]
    corners = d + 1
    i = np.arange(1, corners)
    # Projects to the plane sum(e) = 0 of d + 1 dimensions, scaled so that splatting,
    # blurring by [1, 2, 1] / 4 and slicing together have variance 1. The points are the
    # last axis here; the short axes before it are unrolled.
    plane = np.triu(np.ones((corners, d))) - np.eye(corners, d, -1) * i
    plane = plane * corners * np.sqrt(2 / 3 / (i * (i + 1)))
    elevated = jnp.matmul(
        plane.astype("f4"), features.T, precision=lax.Precision.HIGHEST
    )
    # The nearest point whose coordinates are multiples of d + 1. The coordinates with
    # the largest rounding errors are then moved so that they sum to 0.
    nearest = jnp.round(elevated / corners).astype(jnp.int32)
    off = elevated - nearest * float(corners)
    # Row i counts the coordinates that rank before i; ties are broken by index.
    tie_breaker = np.tri(corners, k=-1, dtype=bool)[:, :, None]
    before = (off[None] > off[:, None]) | ((off[None] == off[:, None]) & tie_breaker)
    rank = jnp.sum(before, axis=1, dtype=jnp.int32) + jnp.sum(nearest, 0, keepdims=True)
    shift = (rank < 0).astype(jnp.int32) - (rank > d)
    nearest, rank = nearest + shift, rank + shift * corners
    off = (elevated - nearest * float(corners)) / corners
    k = np.arange(corners)[:, None, None]
    ordered = jnp.sum(jnp.where(rank[None] == k, off[None], 0), axis=1)
    step = (ordered[:-1] - ordered[1:])[::-1]
    weight = jnp.concatenate([1 - jnp.sum(step, axis=0, keepdims=True), step])
    # Corner k adds k to all coordinates, and subtracts d + 1 from the k coordinates of
    # highest rank.
    position = (nearest[None, :d] - (rank[None, :d] > d - k)) * corners + k
    high, low = (word.T.reshape(-1) for word in _key(position))
    return (high, low), weight.T


def _key(position):
    """A 64-bit hash, as two uint32, of the first d coordinates of each vertex.

    The coordinates are the middle axis of three. The hash is linear in them, so a
    neighbor's key is the vertex's own key plus a constant. The probability that any two
    of a million vertices have the same key is 1e-7.
    """
    odd = np.random.RandomState(0).randint(0, 2**31, (2, 1, position.shape[1], 1))
    odd = odd.astype("u4") * np.uint32(2) + np.uint32(1)
    return [jnp.sum(position.astype("u4") * o, axis=1, dtype="u4") for o in odd]


def _slot(key, probe, size):
    """The slot of a key at this probe in a table of `size`, a power of two."""
    high, low = key
    mixed = high ^ (low * np.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA77)
    mixed = mixed ^ (mixed >> 13)
    return ((mixed + probe.astype("u4")) & np.uint32(size - 1)).astype(jnp.int32)


def _insert(key, present):
    """Builds a hash table with open addressing, in which equal keys have equal slots.

    All keys without a slot probe their next one at the same time. If several keys reach
    the same empty slot, the last one and all keys equal to it win.

    Returns:
        The index of the key in each slot, or -1, and the slot of each key.
    """
    (n,) = present.shape
    size = 1 << (2 * n - 1).bit_length()
    index = jnp.arange(n, dtype=jnp.int32)

    def probe(state):
        table, slot, waiting, probes = state
        here = _slot(key, probes, size)
        enters = waiting & (table[here] < 0)
        table = table.at[jnp.where(enters, here, size)].max(index, mode="drop")
        found = waiting & _same(key, table[here])
        return table, jnp.where(found, here, slot), waiting & ~found, probes + 1

    def _same(key, winner):
        return (key[0] == key[0][winner]) & (key[1] == key[1][winner])

    start = (jnp.full(size, -1, jnp.int32), jnp.zeros_like(index), present)
    table, slot, _, _ = lax.while_loop(
        lambda state: jnp.any(state[2]), probe, (*start, jnp.int32(0))
    )
    return table, slot


def _neighbors(lattice, capacity):
    """Next and previous vertex along each direction, int32 [d + 1, 2, capacity].

    Missing neighbors, and the neighbors of rows without a vertex, are `capacity - 1`.
    """
    missing = capacity - 1
    corners = lattice.weight.shape[1]
    vertex = jnp.arange(capacity, dtype=jnp.int32)
    exists = vertex < lattice.num_vertices
    # Clipped, since the largest capacity has one row more than there are corners.
    own = [word[lattice.owner.at[vertex].get(mode="clip")] for word in lattice.key]
    # One step adds 1 to all coordinates and subtracts d + 1 from the direction's own;
    # the last coordinate is not part of the key.
    steps = 1 - corners * np.eye(corners - 1, corners, dtype=np.int32)[None]

    def both(step):
        key = tuple(word + s for word, s in zip(own, step))
        found = _find(lattice, key, exists)
        following = jnp.where(found < 0, missing, lattice.vertex.reshape(-1)[found])
        previous = jnp.full(capacity, missing, jnp.int32)
        at = jnp.where(found < 0, capacity, following)
        return jnp.stack([following, previous.at[at].set(vertex, mode="drop")])

    return lax.map(both, tuple(word[0] for word in _key(steps)))


def _find(lattice, key, wanted):
    """The corner that owns the vertex of each key, or -1 if there is none."""
    table = lattice.table

    def probe(state):
        found, waiting, probes = state
        owner = table[_slot(key, probes, table.shape[0])]
        high, low = (word[owner] for word in lattice.key)
        same = waiting & (owner >= 0) & (high == key[0]) & (low == key[1])
        return jnp.where(same, owner, found), waiting & ~same & (owner >= 0), probes + 1

    start = (jnp.full(wanted.shape, -1, jnp.int32), wanted, jnp.int32(0))
    found, _, _ = lax.while_loop(lambda state: jnp.any(state[1]), probe, start)
    return found
