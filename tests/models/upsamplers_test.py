"""Upsamplers: values worked by hand, equality with PyTorch, sizes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.layers import ConvTranspose
from jaxseg.models.options import LayerOptions
from jaxseg.models.upsamplers import (
    UPSAMPLERS,
    Bilinear,
    PixelShuffle,
    Transposed,
    Unpool,
    bilinear_init,
)
from jaxseg.ops.pooling import max_pool_argmax
from jaxseg.ops.resize import resize_bilinear


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 4, 5, 3))


def _run(module, *args):
    return module.init_with_output(jax.random.key(1), *args)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("kernel", "strides", "places"),
    [(4, 2, 2), (8, 2, 2), (5, 3, 3), (16, 8, 8), (63, 32, 32)],
)
def test_transposed_starts_as_bilinear_interpolation(
    x, kernel, strides, places, per_channel
):
    """Away from the border, whatever the kernel's size beyond twice the stride."""
    size = (4 * places, 5 * places)
    module = Transposed(kernel=kernel, strides=strides, per_channel=per_channel)
    y, variables = _run(module, x, None, size)
    expected = resize_bilinear(x, size)
    # An odd kernel's middle is a cell, half a cell away from half-pixel centers.
    if strides % 2 == kernel % 2:
        inside = slice(places, -places)
        np.testing.assert_allclose(
            y[:, inside, inside], expected[:, inside, inside], rtol=1e-5, atol=1e-5
        )
    shape = (kernel, kernel, 3) if per_channel else (kernel, kernel, 3, 3)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"conv": {"kernel": shape}}}


def test_bilinear_kernels_keep_the_mean_and_leave_channels_apart():
    for kernel, strides in ((2, 2), (4, 2), (7, 2), (8, 2), (3, 3)):
        weights = bilinear_init(strides)(None, (kernel, kernel, 2, 2))
        np.testing.assert_allclose(jnp.sum(weights, (0, 1)), strides**2 * jnp.eye(2))
    mixed = bilinear_init(2)(jax.random.key(0), (4, 4, 8, 2))
    # One mixture of the channels, interpolated: the kernel has rank one.
    singular = jnp.linalg.svd(mixed.reshape(16, 16), compute_uv=False)
    assert singular[0] > 0.1 and np.all(singular[1:] < 1e-5)


def test_fixed_kernels_are_no_parameters(x):
    module = UPSAMPLERS["transposed_fixed"](features=7)
    y, variables = _run(module, x, None, (7, 10))
    assert y.shape == (2, 7, 10, 3) and not variables
    learned = Transposed(per_channel=True)
    np.testing.assert_array_equal(y, _run(learned, x, None, (7, 10))[0])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("kernel", "strides"), [(2, 2), (3, 1), (4, 2), (5, 2)])
def test_transposed_convolution_equals_pytorch(x, kernel, strides, padding):
    torch = pytest.importorskip("torch")
    module = ConvTranspose(7, (kernel, kernel), strides, padding)
    y, variables = _run(module, x)
    params = jax.tree.map(np.array, variables["params"])
    excess = kernel - strides if padding == "SAME" else 0
    expected = torch.nn.functional.conv_transpose2d(
        torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)),
        torch.tensor(params["kernel"].transpose(2, 3, 0, 1)),
        torch.tensor(params["bias"]),
        stride=strides,
        padding=excess // 2,
    ).numpy()
    expected = expected.transpose(0, 2, 3, 1)
    if padding == "SAME":
        assert y.shape == (2, 4 * strides, 5 * strides, 7)
        expected = expected[:, : 4 * strides, : 5 * strides]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_transposed_gives_the_whole_or_what_fits(x):
    whole, _ = _run(Transposed(fit=False, features=2), x, None, (99, 99))
    assert whole.shape == (2, 3 * 2 + 4, 4 * 2 + 4, 2)
    fitted, _ = _run(Transposed(features=2), x, None, (7, 9))
    np.testing.assert_allclose(fitted, whole[:, 1:8, 1:10], rtol=1e-5, atol=1e-6)
    active, _ = _run(Transposed(features=2, activation=jnp.abs), x, None, (7, 9))
    np.testing.assert_allclose(active, jnp.abs(fitted), rtol=1e-5, atol=1e-6)


def test_pixel_shuffle_lays_channels_side_by_side():
    x = jnp.arange(8.0).reshape(1, 1, 2, 4)
    identity = {
        "conv": {"kernel": jnp.eye(4).reshape(1, 1, 4, 4), "bias": jnp.zeros(4)}
    }
    y = PixelShuffle(features=1).apply({"params": identity}, x, None, (2, 4))
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    cut = PixelShuffle(features=1).apply({"params": identity}, x, None, (1, 3))
    np.testing.assert_array_equal(cut[0, :, :, 0], [[0, 1, 4]])


def test_bilinear_has_both_conventions():
    x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    corners = Bilinear(align_corners=True).apply({}, x, None, (1, 3))
    np.testing.assert_allclose(corners.ravel(), [0, 0.5, 1])
    centers = Bilinear().apply({}, x, None, (1, 4))
    np.testing.assert_allclose(centers.ravel(), [0, 0.25, 0.75, 1])


def test_unpooling_projects_to_the_channels_of_the_places(x):
    above = jax.random.normal(jax.random.key(2), (2, 7, 9, 6))
    _, places = max_pool_argmax(above)
    assert places.shape == (2, 4, 5, 6)
    y, variables = _run(Unpool(project=True), x, places, (7, 9))
    conv = variables["params"]["project"]
    values = jnp.einsum("bhwc,cd->bhwd", x, conv["kernel"][0, 0])
    np.testing.assert_allclose(jnp.sum(y, (1, 2)), jnp.sum(values, (1, 2)), rtol=1e-4)
    assert not _run(Unpool(project=True), places.astype(jnp.float32), places, (7, 9))[1]


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_every_upsampler_is_called_alike(x, name):
    _, places = max_pool_argmax(jnp.ones((2, 7, 9, 3)))
    module = UPSAMPLERS[name](features=3, options=LayerOptions("bfloat16"))
    y, variables = _run(module, x.astype(jnp.bfloat16), places, (7, 9))
    assert y.shape == (2, 7, 9, 3) and y.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))


@pytest.mark.parametrize("module", [Transposed(), PixelShuffle()])
@pytest.mark.parametrize("size", [(6, 10), (8, 11)])
def test_levels_that_the_stride_does_not_reach_are_refused(x, module, size):
    with pytest.raises(ValueError, match="8x10 cells, and the level has"):
        _run(module, x, None, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernel_size=(2, 2), strides=3), "the output has gaps"),
        (dict(kernel_size=(2, 3)), "must be a square"),
        (dict(padding="FULL"), 'use "SAME" or "VALID"'),
    ],
)
def test_impossible_kernels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvTranspose(3, **arguments)


def test_channels_kept_apart_stay_as_many(x):
    with pytest.raises(ValueError, match="keeps its 3 channels"):
        _run(ConvTranspose(5, per_channel=True), x)
