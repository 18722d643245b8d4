"""Skips: values worked by hand, and how levels of another size are met."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.skips import SKIPS, Concat, Gated, NoSkip, Sum, crop_center
from jaxseg.ops.resize import crop_to, resize_bilinear


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 4, 5, 3))


@pytest.fixture
def level():
    return jax.random.normal(jax.random.key(1), (2, 4, 5, 6))


def _run(module, x, level):
    return module.init_with_output(jax.random.key(2), x, level, train=False)


def test_no_skip_lets_nothing_through(x, level):
    y, variables = _run(NoSkip(), x, level)
    assert y is x and not variables


def test_sum_projects_the_scaled_level(x, level):
    y, variables = _run(Sum(scale=0.5), x, level)
    kernel = variables["params"]["project"]["kernel"]
    expected = x + 0.5 * jnp.einsum("bhwc,cd->bhwd", level, kernel[0, 0])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    bias = {"params": {"project": {"kernel": kernel, "bias": jnp.ones(3)}}}
    shifted = Sum(scale=0.5).apply(bias, x, level, train=False)
    # FCN-8s-atonce scales what enters the score layer, not its bias.
    np.testing.assert_allclose(shifted, y + 1, rtol=1e-5, atol=1e-5)


def test_sum_starts_from_what_it_is_told(x, level):
    y, _ = _run(Sum(kernel_init=jax.nn.initializers.zeros), x, level)
    np.testing.assert_array_equal(y, x)


def test_sum_projects_the_map_where_channels_differ(x, level):
    y, variables = _run(Sum(project="map"), x, level)
    kernel = variables["params"]["project"]["kernel"]
    assert kernel.shape == (1, 1, 3, 6)
    expected = jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0]) + level
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    same, nothing = _run(Sum(project="map"), level, level)
    assert not nothing
    np.testing.assert_array_equal(same, 2 * level)


def test_sum_without_projection(x, level):
    y, variables = _run(Sum(project="none"), level, level)
    assert not variables
    np.testing.assert_array_equal(y, 2 * level)
    with pytest.raises(ValueError, match="6 channels and the map 3"):
        _run(Sum(project="none"), x, level)
    with pytest.raises(ValueError, match='use "level", "map" or "none"'):
        Sum(project="always")


def test_concat_puts_the_map_first(x, level):
    y, _ = _run(Concat(), x, level)
    np.testing.assert_array_equal(y, jnp.concatenate([x, level], -1))
    y, variables = _run(Concat(adapt=ConvBlock((2,), 1)), x, level)
    assert y.shape == (2, 4, 5, 5)
    assert variables["params"]["adapt"]["conv1"]["kernel"].shape == (1, 1, 6, 2)


def test_gate_weighs_the_level_alone(x, level):
    y, variables = _run(Gated(), x, level)
    np.testing.assert_array_equal(y[..., :3], x)
    gate = y[..., 3:] / level
    assert np.all(gate > 0) and np.all(gate < 1)
    np.testing.assert_allclose(
        gate, gate[..., :1] * jnp.ones(6).reshape(1, 1, 1, 6), rtol=1e-4
    )
    assert variables["params"]["gate"]["kernel"].shape == (1, 1, 3, 1)
    # Both inputs decide: the gate moves with the map, the level being the same.
    moved = Gated().apply(variables, x + 1, level, train=False)
    assert not np.allclose(moved[..., 3:], y[..., 3:])


@pytest.mark.parametrize("name", ["sum", "concat", "gated"])
@pytest.mark.parametrize(
    ("meet", "expected"),
    [
        (resize_bilinear, lambda x: resize_bilinear(x, (4, 5))),
        (crop_center, lambda x: x[:, 2:6, 2:7]),
        (partial(crop_to, offset=(1, 3)), lambda x: x[:, 1:5, 3:8]),
    ],
)
def test_levels_of_another_size_are_met(x, name, meet, expected):
    level = jax.random.normal(jax.random.key(1), (2, 9, 9, 6))
    y, variables = _run(SKIPS[name](meet=meet), x, level)
    same = SKIPS[name]().apply(variables, x, expected(level), train=False)
    np.testing.assert_allclose(y, same, rtol=1e-4, atol=1e-5)
