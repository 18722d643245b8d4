from unittest import mock

import jax
import numpy as np
import pytest

from jaxseg.ops import permutohedral


def lattice_filter(rooms=()):
    """Jitted, with these capacities before the largest: few compile faster."""

    @jax.jit
    def build_and_filter(features, values, valid):
        lattice = permutohedral.build(features, valid)
        with mock.patch.object(permutohedral, "VERTICES_PER_POINT", rooms):
            y = permutohedral.with_filter(lattice, lambda f, x: f(x), values)
        return y, lattice.num_vertices

    def run(features, values, valid=None):
        valid = np.ones(len(features), bool) if valid is None else valid
        y, count = build_and_filter(features, values, valid)
        return np.asarray(y), int(count)

    return run


filtered = lattice_filter()


def reference(features, values):
    """The same filter point by point, with vertices in a dict."""
    d = features.shape[1]
    vertices, corners = {}, []
    for f, x in zip(features.astype(float), values):
        scaled = (
            f * (d + 1) * np.sqrt(2 / 3 / (np.arange(1, d + 1) * np.arange(2, d + 2)))
        )
        e = np.array(
            [scaled[i:].sum() - i * scaled[i - 1] * (i > 0) for i in range(d + 1)]
        )
        base = np.round(e / (d + 1)) * (d + 1)
        order = np.argsort(-(e - base), kind="stable")
        excess = round(base.sum() / (d + 1))
        # Too high a sum: lower those that were rounded up the most; and the reverse.
        if excess > 0:
            base[order[-excess:]] -= d + 1
        elif excess < 0:
            base[order[:-excess]] += d + 1
        order = np.argsort(-(e - base), kind="stable")
        off = (e - base)[order] / (d + 1)
        for k in range(d + 1):
            vertex = base + k
            vertex[order[d + 1 - k :]] -= d + 1
            weight = off[d - k] - off[d + 1 - k] if k else 1 + off[d] - off[0]
            corners.append((tuple(vertex), weight))
            vertices[tuple(vertex)] = vertices.get(tuple(vertex), 0) + weight * x
    return vertices, corners


def blurred(vertices, d):
    for axis in range(d + 1):
        step = np.ones(d + 1)
        step[axis] -= d + 1
        vertices = {
            v: x
            + 0.5 * vertices.get(tuple(np.array(v) + step), 0)
            + 0.5 * vertices.get(tuple(np.array(v) - step), 0)
            for v, x in vertices.items()
        }
    return vertices


@pytest.mark.parametrize("d", [1, 2, 5])
def test_equals_the_lattice_point_by_point(d):
    random = np.random.RandomState(d)
    features = random.normal(0, 1.5, (60, d)).astype(np.float32)
    values = random.rand(60, 3).astype(np.float32)
    y, count = filtered(features, values)
    vertices, corners = reference(features, values)
    assert count == len(vertices)
    assert min(weight for _, weight in corners) > -1e-6
    vertices = blurred(vertices, d)
    want = np.array([w * vertices[v] for v, w in corners])
    want = want.reshape(60, d + 1, 3).sum(1)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_is_near_the_gaussian_among_many_points():
    random = np.random.RandomState(0)
    features = random.uniform(0, 6, (600, 2)).astype(np.float32)
    values = random.rand(600, 1).astype(np.float32)
    ones = np.ones_like(values)
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / 2)
    mean = filtered(features, values)[0] / filtered(features, ones)[0]
    want = kernel @ values / (kernel @ ones)
    # Means of some 60 points each: 0.5 with a deviation of 0.04.
    assert np.abs(mean - want).mean() < 0.005
    assert np.corrcoef(mean[:, 0], want[:, 0])[0, 1] > 0.97


def test_points_not_valid_add_neither_values_nor_vertices():
    random = np.random.RandomState(0)
    features = random.normal(0, 1, (40, 3)).astype(np.float32)
    values = random.rand(40, 2).astype(np.float32)
    valid = random.rand(40) < 0.5
    y, count = filtered(features, values, valid)
    alone, alone_count = filtered(features[valid], values[valid])
    assert count == alone_count
    np.testing.assert_allclose(y[valid], alone, rtol=1e-5, atol=1e-6)
    assert not y[~valid].any()
    nothing, count = filtered(features, values, np.zeros(40, bool))
    assert count == 0 and not nothing.any()


def test_any_number_of_vertices_finds_room():
    random = np.random.RandomState(0)
    rooms = permutohedral.VERTICES_PER_POINT
    roomy, fitted = lattice_filter(), lattice_filter(rooms)
    counts = []
    for spread in (0.001, 0.5, 1.0, 100.0):
        features = random.normal(0.3, spread, (50, 3)).astype(np.float32)
        values = random.rand(50, 2).astype(np.float32)
        want, count = roomy(features, values)
        y, same_count = fitted(features, values)
        assert count == same_count
        np.testing.assert_allclose(y, want, rtol=1e-6)
        counts.append(count)
    # Every room was used; in the last, all corners are apart.
    limits = [0, *(50 * r for r in rooms), 50 * 4]
    assert all(a < c <= b for a, c, b in zip(limits, counts, limits[1:])), counts
    assert counts[-1] == 50 * 4


@pytest.mark.parametrize("lacking", [0, 1])
def test_room_for_just_all_vertices_or_one_less(lacking):
    random = np.random.RandomState(0)
    features = random.normal(0.3, 0.5, (50, 3)).astype(np.float32)
    values = random.rand(50, 2).astype(np.float32)
    want, count = filtered(features, values)
    y, _ = lattice_filter([(count - lacking + 0.5) / 50])(features, values)
    np.testing.assert_allclose(y, want, rtol=1e-6)


def test_points_and_their_validity_must_agree():
    with pytest.raises(AssertionError, match="shape"):
        permutohedral.build(np.zeros((6, 2), np.float32), np.ones((2, 3), bool))
