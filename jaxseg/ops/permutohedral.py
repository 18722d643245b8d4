"""Gaussian filtering of scattered points, on the permutohedral lattice.

    y[i] = c * sum over j of exp(-|f_i - f_j|^2 / 2) * x[j],  approximately

for points f in d dimensions, by splatting the values to the corners of the simplices
that hold the points, blurring along the lattice's d + 1 directions, and slicing the
points out again: linear in their number. Only corners of occupied simplices exist; what
the blur would lay elsewhere is lost. The factor c is the same for all points.

Source: Adams, Baek and Davis, Fast high-dimensional filtering using the permutohedral
lattice, Eurographics 2010, in the form of Krähenbühl and Koltun's `permutohedral.cpp`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VERTICES_PER_POINT = (0.25, 1, 2)
"""Room for vertices, tried in this order. Photographs need 0.06 to 1.5 per point,
depending on the kernel's width; room for all that could be, d + 1, comes last."""


class Lattice(NamedTuple):
    """Points on the lattice, before its vertices have been given room.

    Attributes:
        weight: barycentric coordinates of every point, float32 [N, d + 1]; zero
            where it is not valid.
        vertex: of the same corners, numbers below `count`, int32 [N, d + 1].
        owner: of every vertex, the corner that it is known by, int32 [N * (d + 1)];
            the first `count` mean something.
        key: of each corner, a pair of uint32 [N * (d + 1)].
        table: from the keys' slots to the corner that owns the vertex, int32, or -1.
        count: of vertices, int32.
    """

    weight: jax.Array
    vertex: jax.Array
    owner: jax.Array
    key: tuple[jax.Array, jax.Array]
    table: jax.Array
    count: jax.Array


def build(features: jax.Array, valid: jax.Array) -> Lattice:
    """Finds the simplex of every point, and numbers the vertices.

    Args:
        features: points in units of the kernel's standard deviation, float32 [N, d].
        valid: which points are there at all, bool [N]. Others add nothing anywhere, no
            vertices either.

    Returns:
        The lattice. No gradient flows through it.
    """
    n, d = features.shape
    key, weight = _simplices(features)
    present = jnp.repeat(valid, d + 1)
    table, slot = _insert(key, present)
    corner = jnp.arange(n * (d + 1), dtype=jnp.int32)
    owns = present & (table[slot] == corner)
    # Numbered in the order of the points: neighbours then lie near in memory.
    number = jnp.cumsum(owns, dtype=jnp.int32) - 1
    owner = jnp.where(owns, number, corner.size)
    owner = jnp.zeros_like(corner).at[owner].set(corner, mode="drop")
    vertex = jnp.where(present, number[table[slot]], 0).reshape(n, d + 1)
    weight = jnp.where(valid[:, None], weight, 0)
    return Lattice(weight, vertex, owner, key, table, number[-1] + 1)


def with_filter(lattice: Lattice, function: Callable, *operands):
    """Calls `function(filter_, *operands)`, where `filter_` filters values [N, K].

    How many vertices there are is known only as the program runs, so `function` is
    compiled for several capacities, and the least that suffices is run. (Under `vmap`
    all are: map over images by `lax.map`.)
    """
    n, corners = lattice.vertex.shape
    rooms = [int(n * r) for r in VERTICES_PER_POINT if r < corners]
    # One more than there are vertices: the last one stands for those not there.
    capacities = [room + 1 for room in (*rooms, n * corners)]

    def branch(capacity):
        def call(lattice, *operands):
            neighbors = _neighbors(lattice, capacity)

            def filter_(x):
                return _filter(lattice, neighbors, x)

            return function(filter_, *operands)

        return call

    which = jnp.sum(lattice.count >= jnp.array(capacities[:-1], jnp.int32))
    return lax.switch(which, [branch(c) for c in capacities], lattice, *operands)


def _filter(lattice, neighbors, x):
    """Splats, blurs and slices values [N, K]."""
    weight, vertex = lattice.weight, lattice.vertex
    capacity = neighbors.shape[-1]
    splat = weight[:, :, None] * x[:, None, :]
    values = jnp.zeros((capacity, x.shape[1]), x.dtype).at[vertex].add(splat)

    def blur(values, pair):
        return values + 0.5 * (_rows(values, pair[0]) + _rows(values, pair[1])), None

    # A scan, for XLA on CPUs fuses unrolled gathers and repeats their work.
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
    # To the plane sum(e) = 0 of d + 1 dimensions, where splatting, blurring by
    # [1, 2, 1] / 4 and slicing together have variance 1. Points come last here: the
    # short axes before them are unrolled.
    plane = np.triu(np.ones((corners, d))) - np.eye(corners, d, -1) * i
    plane = plane * corners * np.sqrt(2 / 3 / (i * (i + 1)))
    elevated = jnp.matmul(
        plane.astype("f4"), features.T, precision=lax.Precision.HIGHEST
    )
    # The nearest point whose coordinates are multiples of d + 1, made to sum to 0
    # by moving those coordinates that were rounded the most.
    nearest = jnp.round(elevated / corners).astype(jnp.int32)
    off = elevated - nearest * float(corners)
    # Row i counts what comes before i; on a tie the first comes first.
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
    # Corner k adds k to all coordinates, and takes d + 1 from the k of highest rank.
    place = (nearest[None, :d] - (rank[None, :d] > d - k)) * corners + k
    key = tuple(word.T.reshape(-1) for word in _key(place))
    return key, weight.T


def _key(place):
    """64 bits, as two uint32, that stand for the first d coordinates of a vertex.

    They are linear in the coordinates, which lie along the middle axis of three: a
    neighbour's key is the vertex's own plus a constant. That any two of a million
    vertices share one has odds of 1e-7.
    """
    odd = np.random.RandomState(0).randint(0, 2**31, (2, 1, place.shape[1], 1))
    odd = odd.astype("u4") * np.uint32(2) + np.uint32(1)
    return [jnp.sum(place.astype("u4") * o, axis=1, dtype="u4") for o in odd]


def _slot(key, probe, size):
    """Where in a table of `size`, a power of two, to look for a key at this probe."""
    high, low = key
    mixed = high ^ (low * np.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA77)
    mixed = mixed ^ (mixed >> 13)
    return ((mixed + probe.astype("u4")) & np.uint32(size - 1)).astype(jnp.int32)


def _insert(key, present):
    """A hash table with open addressing, in which equal keys find the same slot.

    All keys without a slot try their next one at once; of those that meet in an empty
    one, the last wins, together with its equals.

    Returns:
        The index of the key in each slot, or -1; and the slot of each key.
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

    Those not there, and the neighbours of rows without a vertex, are `capacity - 1`.
    """
    nobody = capacity - 1
    corners = lattice.weight.shape[1]
    vertex = jnp.arange(capacity, dtype=jnp.int32)
    there = vertex < lattice.count
    # The last capacity has one row more than there are corners.
    own = [word[lattice.owner.at[vertex].get(mode="clip")] for word in lattice.key]
    # One step adds 1 to all coordinates and takes d + 1 from the direction's own;
    # the last coordinate has no part in the key.
    steps = 1 - corners * np.eye(corners - 1, corners, dtype=np.int32)[None]

    def both(step):
        key = tuple(word + s for word, s in zip(own, step))
        found = _find(lattice, key, there)
        following = jnp.where(found < 0, nobody, lattice.vertex.reshape(-1)[found])
        previous = jnp.full(capacity, nobody, jnp.int32)
        at = jnp.where(found < 0, capacity, following)
        return jnp.stack([following, previous.at[at].set(vertex, mode="drop")])

    return lax.map(both, tuple(word[0] for word in _key(steps)))


def _find(lattice, key, wanted):
    """The corner that owns the vertex of each key; -1 where there is none."""
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
