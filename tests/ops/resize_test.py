"""Resizing: by hand, against PyTorch, and every sample to its own size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.ops import image_resize, resize


def random_map(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(sum(shape)), shape).astype(dtype)


def row(values):
    return jnp.asarray(values, jnp.float32)[None, None, :, None]


def test_half_pixel_centers_by_hand():
    y = resize.resize_bilinear(row([0, 4]), (1, 4))
    np.testing.assert_allclose(y[0, 0, :, 0], [0, 1, 3, 4])
    y = resize.resize_bilinear(row([0, 6]), (1, 3))
    np.testing.assert_allclose(y[0, 0, :, 0], [0, 3, 6])


def test_corners_align_by_hand():
    y = resize.resize_bilinear(row([0, 6]), (1, 4), align_corners=True)
    np.testing.assert_allclose(y[0, 0, :, 0], [0, 2, 4, 6], rtol=1e-6)
    y = resize.resize_bilinear(row([5, 6, 7]), (1, 1), align_corners=True)
    np.testing.assert_allclose(y[0, 0, :, 0], [5])


SIZES = [
    ((4, 6), (8, 24)),
    ((5, 7), (13, 11)),
    ((3, 5), (6, 11)),
    ((9, 8), (4, 3)),
    ((1, 1), (5, 3)),
    ((5, 3), (5, 3)),
    ((6, 5), (1, 1)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bilinear_equals_pytorch(before, after, align_corners):
    torch = pytest.importorskip("torch")
    x = random_map(2, *before, 3)
    xt = torch.tensor(np.array(x).transpose(0, 3, 1, 2), requires_grad=True)
    yt = torch.nn.functional.interpolate(
        xt, after, mode="bilinear", align_corners=align_corners
    )
    g = random_map(2, *after, 3)

    @jax.jit
    def value_and_gradient(x, g):
        y, vjp = jax.vjp(lambda x: resize.resize_bilinear(x, after, align_corners), x)
        return y, vjp(g)[0]

    y, gx = value_and_gradient(x, g)
    theirs = yt.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, theirs, rtol=1e-5, atol=2e-6)
    yt.backward(torch.tensor(np.array(g).transpose(0, 3, 1, 2)))
    theirs = xt.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gx, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_nearest_equals_pytorch(before, after):
    torch = pytest.importorskip("torch")
    x = random_map(2, *before, 3)
    xt = torch.tensor(np.array(x).transpose(0, 3, 1, 2))
    yt = torch.nn.functional.interpolate(xt, after, mode="nearest-exact")
    theirs = yt.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(resize.resize_nearest(x, after), theirs)


def test_nearest_repeats_labels():
    label = jnp.asarray([[[1, 255], [3, 4]]], jnp.uint8)
    y = resize.resize_nearest(label, (4, 6))
    assert y.dtype == jnp.uint8
    np.testing.assert_array_equal(y[0], np.kron(label[0], np.ones((2, 3), np.uint8)))
    half = resize.resize_nearest(jnp.arange(8).reshape(1, 1, 8), (1, 4))
    np.testing.assert_array_equal(half[0, 0], [1, 3, 5, 7])


def test_bfloat16_is_computed_in_float32():
    x = random_map(1, 5, 7, 2, dtype=jnp.bfloat16)
    for size in ((13, 28), (10, 5)):
        y = resize.resize_bilinear(x, size)
        assert y.dtype == jnp.bfloat16
        exact = resize.resize_bilinear(x.astype(jnp.float32), size)
        np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_sample_gets_its_own_size(dtype):
    x = random_map(4, 5, 7, 2, dtype=dtype)
    sizes = [(11, 14), (3, 14), (11, 6), (1, 1)]
    resize_to = jax.jit(resize.resize_bilinear_to, static_argnums=2)
    y = resize_to(x, jnp.asarray(sizes, jnp.int32), (11, 14))
    assert y.shape == (4, 11, 14, 2) and y.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    for one, own, (h, w) in zip(x, y, sizes):
        alone = resize.resize_bilinear(one[None], (h, w))[0]
        np.testing.assert_allclose(
            own[:h, :w].astype(jnp.float32),
            alone.astype(jnp.float32),
            rtol=tolerance,
            atol=tolerance,
        )


def test_own_size_is_exact_on_large_maps():
    # Where black and white take turns, the value is the fraction looked at.
    n, size = 1500, 4001
    x = row(np.arange(n) % 2)
    y = resize.resize_bilinear_to(x, jnp.asarray([[1, size]]), (1, size))
    exact = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    exact = 1 - abs(exact % 2 - 1)
    np.testing.assert_allclose(y[0, 0, :, 0], exact, atol=1e-6)


def test_cropping_what_was_padded_changes_nothing():
    label = jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3)
    padded = resize.pad_to(label, (4, 4), 255)
    np.testing.assert_array_equal(
        padded[0],
        [[0, 1, 2, 255], [3, 4, 5, 255], [255] * 4, [255] * 4],
    )
    np.testing.assert_array_equal(resize.crop_to(padded, (2, 3)), label)
    cut = resize.crop_to(padded[..., None], (1, 2), offset=(1, 2))
    np.testing.assert_array_equal(cut[0, :, :, 0], [[5, 255]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: resize.resize_bilinear(x[0], (2, 2)), r"expected \[B, H, W, C\]"),
        (lambda x: resize.resize_bilinear(x, (0, 2)), "at least 1"),
        (lambda x: resize.resize_nearest(x[0, 0], (2, 2)), r"\[B, H, W\] or"),
        (
            lambda x: resize.resize_bilinear_to(x, jnp.ones((3, 2), int), (2, 2)),
            r"\(1, 2\)",
        ),
        (lambda x: resize.crop_to(x, (4, 3), (2, 0)), "crop at most 3"),
        (lambda x: resize.crop_to(x, (2, 2), (0, -1)), "width 2 at offset -1"),
        (lambda x: resize.pad_to(x, (5, 5), 0), "width 6 is larger than 5"),
    ],
)
def test_errors_name_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((1, 5, 6, 2)))


RESIZES = {
    "bilinear": resize.resize_bilinear,
    "corners": lambda x, size: resize.resize_bilinear(x, size, align_corners=True),
    "nearest": resize.resize_nearest,
    "own sizes": lambda x, size: resize.resize_bilinear_to(
        x, jnp.asarray([size] * len(x)), size
    ),
    "images": image_resize.resize_image,
}
SIDES = st.sampled_from([(3, 5), (6, 10), (4, 4)])


@pytest.mark.parametrize("resize_to", RESIZES.values(), ids=RESIZES)
@given(before=SIDES, after=SIDES, seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_resizing_keeps_constants_and_the_range(resize_to, before, after, seed):
    x = np.random.default_rng(seed).integers(0, 256, (1, *before, 2), np.uint8)
    x[..., 1] = seed % 256
    kind = jnp.uint8 if resize_to is image_resize.resize_image else jnp.float32
    y = np.asarray(resize_to(jnp.asarray(x, kind), after), np.float32)
    assert y.shape == (1, *after, 2)
    np.testing.assert_allclose(y[..., 1], seed % 256, rtol=1e-6)
    assert x.min() - 1e-4 <= y.min() and y.max() <= x.max() + 1e-4
    if before == after:
        np.testing.assert_array_equal(y, x)


@given(
    small=st.sampled_from([(1, 1), (2, 5), (4, 3)]),
    large=st.sampled_from([(4, 5), (7, 9)]),
    value=st.integers(0, 255),
)
@settings(max_examples=12, deadline=None)
def test_cropping_undoes_padding(small, large, value):
    x = jnp.arange(small[0] * small[1], dtype=jnp.uint8).reshape(1, *small)
    padded = resize.pad_to(x, large, value)
    np.testing.assert_array_equal(resize.crop_to(padded, small), x)
    assert (np.asarray(padded)[0, small[0] :] == value).all()
    assert (np.asarray(padded)[0, :, small[1] :] == value).all()


@pytest.mark.parametrize("numpy", [np, jnp])
def test_edges_are_repeated(numpy):
    x = numpy.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    padded = resize.pad_edges(x, (5, 6))
    assert isinstance(padded, type(x))
    expected = np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)), mode="edge")
    np.testing.assert_array_equal(padded, expected)
    assert resize.pad_edges(x, (3, 4)) is x


@pytest.mark.parametrize("shape", [(1, 0, 5, 2), (1, 5, 0, 2)])
def test_resizing_from_nothing_is_an_error(shape):
    x = jnp.zeros(shape)
    with pytest.raises(ValueError, match="without pixels to resize"):
        resize.resize_bilinear(x, (4, 4))
    with pytest.raises(ValueError, match="without pixels to resize"):
        resize.resize_nearest(x, (4, 4))
    with pytest.raises(ValueError, match="without pixels to resize"):
        resize.resize_bilinear_to(x, jnp.ones((1, 2), jnp.int32), (4, 4))
