"""Pooling with places and indices: by hand, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.ops import indexed_pooling, pooling

# The 4x4 example of the literature: every window's maximum is its last pixel.
EXAMPLE = jnp.float32([[1, 2, 1, 2], [3, 4, 3, 4], [1, 2, 1, 2], [3, 4, 3, 4]])


def as_map(plane, dtype=jnp.float32):
    return jnp.asarray(plane, dtype)[None, :, :, None]


def plane(x):
    return np.asarray(x[0, :, :, 0]).tolist()


def random_map(shape, kind, dtype=jnp.float32):
    """Distinct values, or values drawn from {-1, 0, 1} so that ties abound."""
    rng = np.random.default_rng(sum(shape))
    if kind == "tied":
        return jnp.asarray(rng.integers(-1, 2, shape), dtype)
    n = np.prod(shape)
    return jnp.asarray(rng.permutation(n).reshape(shape) / n - 0.5, dtype)


def test_example_pools_to_its_last_pixels():
    maxima, places = pooling.max_pool_argmax(as_map(EXAMPLE))
    assert plane(maxima) == [[4, 4], [4, 4]]
    assert plane(places) == [[3, 3], [3, 3]]
    assert places.dtype == jnp.uint8
    indices = pooling.places_to_indices(places, (4, 4))
    assert plane(indices) == [[5, 7], [13, 15]]
    assert plane(pooling.max_pool_indices(as_map(EXAMPLE), 2)[1]) == plane(indices)


def test_first_of_equals_wins_and_takes_the_whole_gradient():
    x = as_map([[5, 5, 0, 7], [5, 5, 7, 7]])
    for pool in (pooling.max_pool_argmax, lambda x: pooling.max_pool_indices(x, 2)):
        grad = jax.grad(lambda x: (pool(x)[0] * as_map([[10, 20]])).sum())(x)  # noqa: B023
        assert plane(grad) == [[10, 0, 0, 20], [0, 0, 0, 0]]


def test_partial_windows_are_clipped_and_never_select_padding():
    x = as_map([[-1, -2, -jnp.inf], [-3, -4, -jnp.inf], [-8, -7, -9]])
    maxima, places = pooling.max_pool_argmax(x)
    assert plane(maxima) == [[-1, -jnp.inf], [-7, -9]]
    assert plane(places) == [[0, 0], [1, 0]]
    back = pooling.max_unpool(maxima, places, (3, 3))
    assert plane(back) == [[-1, 0, -jnp.inf], [0, 0, 0], [0, -7, -9]]
    g = as_map([[1, 2], [3, 4]])
    (grad,) = jax.vjp(lambda x: pooling.max_pool_argmax(x)[0], x)[1](g)
    assert plane(grad) == [[1, 0, 2], [0, 0, 0], [0, 3, 4]]


def test_first_pixel_wins_where_all_are_the_lowest():
    x = jnp.full((1, 3, 3, 1), -jnp.inf)
    assert plane(pooling.max_pool_argmax(x)[1]) == [[0, 0], [0, 0]]
    # Windows begin at -1 and 1; the padding before the first is not a pixel.
    indices = pooling.max_pool_indices(x, 3, 2, padding=1)[1]
    assert plane(indices) == [[0, 1], [3, 4]]


def test_unpooling_by_hand_with_gradient():
    y, places = as_map([[1, 2]]), as_map([[2, 1]], jnp.uint8)
    x, vjp = jax.vjp(lambda y: pooling.max_unpool(y, places), y)
    assert plane(x) == [[0, 0, 0, 2], [1, 0, 0, 0]]
    assert plane(vjp(as_map([[1, 2, 3, 4], [5, 6, 7, 8]]))[0]) == [[5, 4]]


def test_nan_counts_as_greatest():
    x = as_map([[1, jnp.nan], [jnp.nan, 2]])
    maxima, places = pooling.max_pool_argmax(x)
    assert jnp.isnan(maxima).all()
    assert plane(places) == [[2]]
    assert plane(pooling.max_pool_indices(x, 2)[1]) == [[2]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_dtypes_are_kept(dtype):
    maxima, places = pooling.max_pool_argmax(random_map((1, 5, 6, 2), "tied", dtype))
    assert maxima.dtype == dtype
    assert pooling.max_unpool(maxima, places, (5, 6)).dtype == dtype


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(6, 10), (7, 9), (1, 1)])
def test_pooling_what_was_unpooled_changes_nothing(window, size):
    x = jnp.abs(random_map((2, *size, 3), "random")) + 1

    @jax.jit
    def there_and_back_twice(x):
        maxima, places = pooling.max_pool_argmax(x, window)
        back = pooling.max_unpool(maxima, places, size, window)
        return maxima, places, back, pooling.max_pool_argmax(back, window)

    maxima, places, back, again = there_and_back_twice(x)
    np.testing.assert_array_equal(again[0], maxima)
    np.testing.assert_array_equal(again[1], places)
    np.testing.assert_array_equal(back, jnp.where(back > 0, x, 0))


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("size", [(8, 12), (9, 13), (5, 2)])
@pytest.mark.parametrize("window", [2, 3])
def test_fast_and_general_forms_agree(kind, size, window):
    @jax.jit
    def both(x):
        y, places = pooling.max_pool_argmax(x, window)
        general, indices = pooling.max_pool_indices(x, window, ceil_mode=True)
        fast = (
            y,
            places,
            pooling.places_to_indices(places, size, window),
            pooling.max_unpool(y, places, size, window),
        )
        slow = (
            general,
            pooling.indices_to_places(indices, size, window),
            indices,
            pooling.max_unpool_indices(y, indices, size),
        )
        return fast, slow

    jax.tree.map(np.testing.assert_array_equal, *both(random_map((2, *size, 3), kind)))


def test_second_derivatives_pass_through():
    x = random_map((1, 5, 4, 2), "random")

    def loss(x):
        maxima, places = pooling.max_pool_argmax(x)
        return (pooling.max_unpool(maxima**2, places, (5, 4)) ** 2).sum()

    # d2/dx2 of max(x)**4 is 12 * max(x)**2 where the maximum stands, else 0.
    twice = jax.jit(jax.grad(lambda x: jax.grad(loss)(x).sum()))(x)
    maxima, places = pooling.max_pool_argmax(x)
    expected = pooling.max_unpool(12 * maxima**2, places, (5, 4))
    np.testing.assert_allclose(twice, expected, rtol=1e-5)


def test_vmap_equals_a_batch():
    x = random_map((3, 5, 6, 2), "random")

    def round_trip(x):
        maxima, places = pooling.max_pool_argmax(x)
        return pooling.max_unpool(maxima, places, (5, 6))

    def squares(x):
        return (round_trip(x) ** 2).sum()

    grads = jax.jit(jax.vmap(jax.grad(squares)))(x[:, None])
    np.testing.assert_array_equal(grads[:, 0], jax.jit(jax.grad(squares))(x))


@pytest.mark.parametrize("size", [(16, 6), (10, 6)])
def test_sharded_over_space_equals_unsharded(size):
    mesh = jax.make_mesh(
        (2, 2), ("data", "space"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))
    x = random_map((2, *size, 3), "random")

    @jax.jit
    def outputs_and_grad(x):
        def loss(x):
            maxima, places = pooling.max_pool_argmax(x)
            back = pooling.max_unpool(jnp.sin(maxima), places, size)
            return (back * jnp.cos(x)).sum(), (back, places)

        gradient, outputs = jax.grad(loss, has_aux=True)(x)
        return outputs, gradient

    split = outputs_and_grad.lower(jax.device_put(x, sharding)).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        outputs_and_grad(x),
        split(jax.device_put(x, sharding)),
    )
    if size[0] % 4 == 0:  # no window crosses devices, so they have nothing to say
        for collective in ("all-gather", "all-to-all", "all-reduce", "permute"):
            assert collective not in split.as_text()


def test_default_path_neither_scatters_nor_gathers():
    def loss(x):
        maxima, places = pooling.max_pool_argmax(x)
        return pooling.max_unpool(maxima, places, (7, 6)).sum()

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((1, 7, 6, 2))).as_text()
    for operation in ("scatter", "gather", "reduce_window", "sort"):
        assert operation not in text


# --- PyTorch --------------------------------------------------------------------------


def to_torch(torch, x, requires_grad=False):
    kind = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    array = np.asarray(x.astype(jnp.float32)).transpose(0, 3, 1, 2)
    return torch.tensor(array, dtype=kind, requires_grad=requires_grad)


def from_torch(x):
    x = x.detach()
    return (x.float() if x.is_floating_point() else x).numpy().transpose(0, 2, 3, 1)


def equal(a, b):
    np.testing.assert_array_equal(np.asarray(a.astype(jnp.float32)), from_torch(b))


def value_and_vjp(f):
    """Compiles (x, indices or nothing, cotangent) -> (f's outputs, gradient of x)."""

    @jax.jit
    def both(x, *rest):
        *rest, g = rest
        y, vjp, aux = jax.vjp(lambda x: f(x, *rest), x, has_aux=True)
        return (y, aux), vjp(g)[0]

    return both


GEOMETRIES = [
    dict(window=2),
    dict(window=2, ceil_mode=True),
    dict(window=3, ceil_mode=True),
    dict(window=3, stride=2),
    dict(window=3, stride=2, padding=1),
    dict(window=3, stride=2, padding=1, ceil_mode=True),
    dict(window=2, stride=1),
    dict(window=2, stride=3, ceil_mode=True),
    dict(window=3, stride=1, padding=1, dilation=2),
    dict(window=(3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True),
    dict(window=(2, 3), stride=(1, 3), dilation=(3, 1), padding=(1, 0)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(
    ("kind", "dtype", "size"),
    [
        ("random", "float32", (9, 11)),
        ("tied", "float32", (8, 12)),
        ("tied", "bfloat16", (9, 11)),
    ],
)
def test_general_form_equals_pytorch(geometry, kind, dtype, size):
    torch = pytest.importorskip("torch")
    x = random_map((2, *size, 3), kind, jnp.dtype(dtype))
    xt = to_torch(torch, x, requires_grad=True)
    theirs = {"kernel_size" if k == "window" else k: v for k, v in geometry.items()}
    yt, it = torch.nn.MaxPool2d(return_indices=True, **theirs)(xt)
    # Small whole numbers, so that sums over overlapping windows are exact.
    g = random_map(from_torch(yt).shape, "tied", x.dtype)
    yt.backward(to_torch(torch, g))

    pool = value_and_vjp(lambda x: pooling.max_pool_indices(x, **geometry))
    (y, indices), gx = pool(x, g)
    equal(y, yt)
    np.testing.assert_array_equal(indices, from_torch(it))
    equal(gx, xt.grad)

    vt = to_torch(torch, y, requires_grad=True)
    # What MaxUnpool2d calls, without its check that output_size fits the window.
    back = torch.ops.aten.max_unpool2d(vt, it, list(size))
    g = random_map(x.shape, "random", x.dtype)
    back.backward(to_torch(torch, g))
    unpool = value_and_vjp(
        lambda y, indices: (pooling.max_unpool_indices(y, indices, size), None)
    )
    (ours, _), gy = unpool(y, indices, g)
    equal(ours, back)
    equal(gy, vt.grad)


@pytest.mark.parametrize("size", [(8, 12), (9, 11), (1, 7)])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fast_form_equals_pytorch(size, window, kind, dtype):
    torch = pytest.importorskip("torch")
    x = random_map((2, *size, 5), kind, dtype)
    xt = to_torch(torch, x, requires_grad=True)
    yt, it = torch.nn.functional.max_pool2d(
        xt, window, ceil_mode=True, return_indices=True
    )
    g = random_map(from_torch(yt).shape, "random", dtype)
    yt.backward(to_torch(torch, g))
    pool = value_and_vjp(lambda x: pooling.max_pool_argmax(x, window))
    (y, places), gx = pool(x, g)
    equal(y, yt)
    np.testing.assert_array_equal(
        pooling.places_to_indices(places, size, window), from_torch(it)
    )
    equal(gx, xt.grad)

    vt = to_torch(torch, g, requires_grad=True)
    back = torch.nn.MaxUnpool2d(window)(vt, it, output_size=size)
    unpool = value_and_vjp(
        lambda v, places: (pooling.max_unpool(v, places, size, window), None)
    )
    v, g = g, random_map(x.shape, "random", dtype)
    back.backward(to_torch(torch, g))
    (ours, _), gv = unpool(v, places, g)
    equal(ours, back)
    equal(gv, vt.grad)


# --- properties of the geometry -------------------------------------------------------


@given(
    size=st.integers(1, 12),
    window=st.integers(1, 4),
    stride=st.integers(1, 5),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_sizes_are_pytorch_s(size, window, stride, padding, dilation, ceil_mode):
    torch = pytest.importorskip("torch")
    geometry = (window, stride, padding, dilation, ceil_mode)
    try:
        _, first = jax.eval_shape(
            lambda: (0, indexed_pooling._axis_geometry(size, *geometry)[1])
        )
        ours = first.shape[0]
    except ValueError as error:
        ours = str(error)
    try:
        theirs = torch.nn.functional.max_pool1d(torch.zeros(1, 1, size), *geometry)
    except RuntimeError:
        assert isinstance(ours, str)
    else:
        if torch.isinf(theirs).any():
            assert "contains no pixel" in ours
        else:
            assert ours == theirs.shape[2]


@given(
    size=st.sampled_from([(4, 6), (5, 7)]),
    window=st.sampled_from([2, 3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_places_and_indices_convert_without_loss(size, window, seed):
    x = np.random.default_rng(seed).normal(size=(1, *size, 2)).astype(np.float32)
    maxima, places = pooling.max_pool_argmax(x, window)
    indices = pooling.places_to_indices(places, size, window)
    flat = jnp.asarray(x.reshape(1, -1, 1, 2))
    taken = jnp.take_along_axis(flat, indices.reshape(1, -1, 1, 2), axis=1)
    np.testing.assert_array_equal(taken.reshape(maxima.shape), maxima)
    back = pooling.indices_to_places(indices, size, window)
    np.testing.assert_array_equal(back, places)
    np.testing.assert_array_equal(
        pooling.max_unpool(maxima, places, size, window),
        pooling.max_unpool_indices(maxima, indices, size),
    )


# --- errors ---------------------------------------------------------------------------


def test_a_size_that_does_not_pool_to_the_map_names_those_that_do():
    y, places = jnp.ones((1, 3, 4, 2)), jnp.zeros((1, 3, 4, 2), jnp.uint8)
    with pytest.raises(ValueError, match=r"height 7 pools to 4.* 5 to 6"):
        pooling.max_unpool(y, places, (7, 8))
    with pytest.raises(ValueError, match=r"width 9 pools to 5.* 7 to 8"):
        pooling.places_to_indices(places, (6, 9))


def test_bad_shapes_are_named():
    y = jnp.ones((1, 3, 4, 2))
    with pytest.raises(ValueError, match=r"places has shape \(1, 2, 4, 2\)"):
        pooling.max_unpool(y, jnp.zeros((1, 2, 4, 2), jnp.uint8))
    with pytest.raises(ValueError, match="int32, not uint8"):
        pooling.max_unpool(y, jnp.zeros(y.shape, jnp.int32))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        pooling.max_pool_argmax(y[0])


@pytest.mark.parametrize("window", [0, 17])
def test_windows_that_uint8_cannot_count_are_refused(window):
    with pytest.raises(ValueError, match="1 to 16"):
        pooling.max_pool_argmax(jnp.ones((1, 32, 32, 1)), window)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (dict(window=3, padding=2), "at most 1"),
        (dict(window=9), "does not fit into 4 pixels"),
        (dict(window=0), "window is 0"),
        (dict(window=2, stride=(1, 2, 3)), "stride is"),
        (dict(window=2, stride=1, padding=1, dilation=5), "contains no pixel"),
    ],
)
def test_impossible_geometry_is_refused(geometry, message):
    with pytest.raises(ValueError, match=message):
        pooling.max_pool_indices(jnp.ones((1, 4, 4, 1)), **geometry)
