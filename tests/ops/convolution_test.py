"""Transposed convolution: by hand, against PyTorch, and as interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import convolution, resize


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_bilinear_kernel_by_hand():
    even = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    np.testing.assert_allclose(convolution.bilinear_kernel(4), even, rtol=1e-6)
    odd = np.outer([1, 2, 1], [1, 2, 1]) / 4
    np.testing.assert_allclose(convolution.bilinear_kernel(3), odd, rtol=1e-6)
    assert convolution.bilinear_kernel(63).shape == (63, 63)


@pytest.mark.parametrize("factor", [2, 8])
def test_bilinear_kernel_interpolates_away_from_the_border(factor):
    x = random(0, 1, 5, 6, 3)
    kernel = convolution.bilinear_kernel(2 * factor)[:, :, None]
    kernel = jnp.broadcast_to(kernel, (2 * factor, 2 * factor, 3))
    y = convolution.conv_transpose(x, kernel, factor, factor // 2)
    expected = resize.resize_bilinear(x, (5 * factor, 6 * factor))
    assert y.shape == expected.shape
    inner = (slice(None), slice(factor, -factor), slice(factor, -factor))
    np.testing.assert_allclose(y[inner], expected[inner], rtol=1e-5, atol=1e-5)


def test_by_hand():
    x = jnp.float32([1, 10]).reshape(1, 1, 2, 1)
    kernel = jnp.float32([1, 2, 3]).reshape(1, 3, 1, 1)
    y = convolution.conv_transpose(x, kernel, stride=2)
    # 1 2 3 laid down at 0, ten times that at 2; rows are spread by the stride, too.
    np.testing.assert_array_equal(y[0, :, :, 0], [[1, 2, 13, 20, 30]])
    x, kernel = x.transpose(0, 2, 1, 3), kernel.transpose(1, 0, 2, 3)
    y = convolution.conv_transpose(x, kernel, stride=2, padding=0)
    np.testing.assert_array_equal(y[0, :, 0, 0], [1, 2, 13, 20, 30])


GEOMETRIES = [  # kernel, stride, padding
    (2, 2, 0),
    (4, 2, 1),
    (4, 2, 0),
    (8, 2, 3),
    (16, 8, 4),
    (63, 32, 0),
    (64, 32, 16),
    (3, 2, 1),
    (5, 3, 2),
    (2, 3, 0),
    (1, 2, 0),
    (3, 1, 1),
    (7, 1, 0),
    ((3, 6), 2, 1),
]


@pytest.mark.parametrize("channelwise", [False, True])
@pytest.mark.parametrize(("side", "stride", "padding"), GEOMETRIES)
def test_equals_pytorch(side, stride, padding, channelwise):
    torch = pytest.importorskip("torch")
    sides = side if isinstance(side, tuple) else (side, side)
    x = random(1, 2, 3, 4, 3)
    kernel = random(2, *sides, 3) if channelwise else random(2, *sides, 3, 2)
    xt = torch.tensor(np.array(x).transpose(0, 3, 1, 2), requires_grad=True)
    order = (2, 0, 1) if channelwise else (2, 3, 0, 1)
    kt = np.array(kernel).transpose(order)
    kt = torch.tensor(kt[:, None] if channelwise else kt, requires_grad=True)
    yt = torch.nn.functional.conv_transpose2d(
        xt, kt, stride=stride, padding=padding, groups=3 if channelwise else 1
    )

    theirs = yt.detach().numpy().transpose(0, 2, 3, 1)
    g = random(3, *theirs.shape)

    @jax.jit
    def value_and_gradients(x, kernel, g):
        y, vjp = jax.vjp(
            lambda x, k: convolution.conv_transpose(x, k, stride, padding), x, kernel
        )
        return y, *vjp(g)

    y, gx, gk = value_and_gradients(x, kernel, g)
    np.testing.assert_allclose(y, theirs, rtol=1e-4, atol=1e-4)
    yt.backward(torch.tensor(np.array(g).transpose(0, 3, 1, 2)))
    theirs = xt.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gx, theirs, rtol=1e-4, atol=1e-3)
    theirs = kt.grad[:, 0] if channelwise else kt.grad
    theirs = theirs.numpy().transpose((1, 2, 0) if channelwise else (2, 3, 0, 1))
    np.testing.assert_allclose(gk, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4, 3, 2)])
def test_bfloat16_is_kept(shape):
    x, kernel = random(1, 1, 3, 4, 3), random(2, *shape)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = convolution.conv_transpose(x, kernel, 2, 1)
    assert y.dtype == jnp.bfloat16
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    exact = convolution.conv_transpose(*wide, 2, 1)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2)


def test_gradient_spreads_nothing_with_zeros():
    """XLA's slow form, a convolution of a dilated input, appears nowhere."""

    def loss(x, kernel):
        return convolution.conv_transpose(x, kernel, 2, 1).sum()

    for shape in ((4, 4, 3), (4, 4, 3, 2)):
        grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
        text = grad.lower(random(1, 1, 3, 4, 3), random(2, *shape)).as_text()
        assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 2, 4, 5), (2, 0), "kernel"),
        ((2, 2), (2, 0), "depthwise"),
        ((2, 2, 3, 5), (0, 0), "stride is 0"),
        ((2, 2, 3, 5), (1, 3), "must be below 3"),
    ],
)
def test_errors_name_the_cure(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        convolution.conv_transpose(jnp.ones((1, 4, 4, 3)), jnp.ones(shape), *arguments)


def test_kernel_needs_a_size():
    with pytest.raises(ValueError, match="size is 0"):
        convolution.bilinear_kernel(0)
