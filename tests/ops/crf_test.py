import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxseg.ops import permutohedral
from jaxseg.ops.crf import PRESETS, dense_crf, pad_to_multiple

PARAMETERS = dict(
    w_bilateral=2.0, sigma_xy=5.0, sigma_rgb=20.0, w_spatial=1.5, sigma_spatial=1.2
)


@pytest.fixture(autouse=True)
def one_capacity(monkeypatch):
    """Compiles for the largest number of vertices only; the lattice's tests do all."""
    monkeypatch.setattr(permutohedral, "VERTICES_PER_POINT", ())


def problem(height=9, width=12, classes=3, seed=0):
    """Two smooth regions with grain, and probabilities that are right with noise."""
    random = np.random.RandomState(seed)
    left = np.arange(width)[None, :] < width // 2
    left = np.broadcast_to(left, (height, width))
    image = np.where(left[..., None], [60, 90, 30], [120, 60, 70])
    image = (image + random.normal(0, 6, (height, width, 3))).clip(0, 255)
    logits = random.normal(0, 1, (height, width, classes))
    logits[..., 0] += left
    logits[..., 1] += ~left
    return softmax(logits, axis=-1).astype(np.float32), image.astype(np.uint8)


def gaussian(points):
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.exp(-squares / 2)


def brute_force(
    probabilities,
    image,
    *,
    w_bilateral,
    sigma_xy,
    sigma_rgb,
    w_spatial,
    sigma_spatial,
    iterations=10,
):
    """Mean field with whole matrices of exact kernels, in float64."""
    height, width, classes = probabilities.shape
    place = np.mgrid[:height, :width].reshape(2, -1).T.astype(float)
    color = image.reshape(-1, 3).astype(float)
    kernels = [
        gaussian(np.concatenate([place / sigma_xy, color / sigma_rgb], axis=1)),
        gaussian(place / sigma_spatial),
    ]
    kernels = [k / np.sqrt(np.outer(k.sum(0), k.sum(0))) for k in kernels]
    kernel = w_bilateral * kernels[0] + w_spatial * kernels[1]
    log_p = np.log(np.maximum(probabilities.reshape(-1, classes).astype(float), 1e-5))
    q = softmax(log_p, axis=-1)
    for _ in range(iterations):
        q = softmax(log_p + kernel @ q, axis=-1)
    return q.reshape(probabilities.shape)


def test_two_pixels_by_hand():
    p = np.array([[[0.8, 0.2], [0.4, 0.6]]], np.float32)
    image = np.zeros((1, 2, 3), np.uint8)
    q = dense_crf(
        p,
        image,
        w_bilateral=0.0,
        sigma_xy=1.0,
        sigma_rgb=1.0,
        w_spatial=2.0,
        sigma_spatial=1.0,
        iterations=1,
        exact=True,
    )
    # Each pixel's kernel is 1 on itself and e^(-1/2) on the other.
    near = np.exp(-0.5)
    first = [(a + near * b) / (1 + near) for a, b in ((0.8, 0.4), (0.2, 0.6))]
    second = [(b + near * a) / (1 + near) for a, b in ((0.8, 0.4), (0.2, 0.6))]
    want = [
        [p * np.exp(2 * m) for p, m in zip((0.8, 0.2), first)],
        [p * np.exp(2 * m) for p, m in zip((0.4, 0.6), second)],
    ]
    want = np.array(want) / np.sum(want, axis=1, keepdims=True)
    np.testing.assert_allclose(q[0], want, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.2, 30.0])
def test_spatial_filter_is_exact(sigma):
    p, image = problem(height=5, width=70)
    parameters = dict(PARAMETERS, w_bilateral=0.0, sigma_spatial=sigma)
    q = dense_crf(p, image, **parameters, exact=True)
    np.testing.assert_allclose(q, brute_force(p, image, **parameters), atol=1e-4)


def test_exact_equals_brute_force():
    p, image = problem(height=17, width=20)  # More pixels than rows in one chunk.
    q = dense_crf(p, image, **PARAMETERS, exact=True)
    np.testing.assert_allclose(q, brute_force(p, image, **PARAMETERS), atol=1e-4)


def test_lattice_is_near_brute_force():
    p, image = problem(height=24, width=32)
    want = brute_force(p, image, **PARAMETERS)
    off = np.abs(dense_crf(p, image, **PARAMETERS) - want)
    assert off.mean() < 0.01
    assert off.mean() < 0.1 * np.abs(p - want).mean()


def test_regions_lose_their_noise_and_keep_their_edge():
    p, image = problem(height=24, width=32)
    right = np.broadcast_to(np.arange(32) >= 16, (24, 32))
    assert (p.argmax(-1) == right).mean() < 0.8
    q = np.asarray(dense_crf(p, image, **{**PARAMETERS, "w_bilateral": 6.0}))
    assert (q.argmax(-1) == right).all()


@pytest.mark.parametrize("exact", [False, True])
def test_padding_has_no_influence(exact):
    p, image = problem()
    alone = dense_crf(p, image, **PARAMETERS, exact=exact)
    padded, padded_image, valid = pad_to_multiple(p, image, 8)
    assert padded.shape == (16, 16, 3) and padded_image.shape == (16, 16, 3)
    assert valid.sum() == 9 * 12 and valid[:9, :12].all()
    random = np.random.RandomState(1)
    # Colors that would be neighbors if they counted; values that would spread.
    padded_image[~valid] = random.randint(20, 140, padded_image[~valid].shape)
    padded[~valid] = np.nan
    q = dense_crf(padded, padded_image, **PARAMETERS, valid=valid, exact=exact)
    np.testing.assert_allclose(q[:9, :12], alone, atol=1e-5)


def test_batches_and_vmap_change_nothing():
    pairs = [problem(6, 7, seed=s) for s in range(2)]
    p, image = (np.stack(x) for x in zip(*pairs))
    each = np.stack([dense_crf(*pair, **PARAMETERS) for pair in pairs])

    def crf(p, image):
        return dense_crf(p, image, **PARAMETERS)

    for batch in (crf, jax.vmap(crf)):
        np.testing.assert_allclose(batch(p, image), each, atol=1e-5)


def test_bilateral_sigmas_and_weights_may_be_traced():
    p, image = problem(6, 7)
    traced = {k: v for k, v in PARAMETERS.items() if k != "sigma_spatial"}
    crf = jax.jit(lambda traced: dense_crf(p, image, sigma_spatial=1.2, **traced))
    want = dense_crf(p, image, **PARAMETERS)
    np.testing.assert_allclose(crf(traced), want, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_gradient_is_that_of_finite_differences(exact):
    p, image = problem(5, 6)
    target = np.random.RandomState(1).normal(size=p.shape).astype(np.float32)

    @jax.jit
    def loss(changed):
        parameters = {**PARAMETERS, **changed}
        return jnp.sum(target * dense_crf(p, image, **parameters, exact=exact))

    names = ["w_bilateral", "w_spatial"] + exact * ["sigma_xy", "sigma_rgb"]
    values = {name: PARAMETERS[name] for name in names}
    gradient = jax.grad(loss)(values)
    for name, value in values.items():
        step = 0.02 * value
        higher = loss({**values, name: value + step})
        lower = loss({**values, name: value - step})
        slope = (higher - lower) / (2 * step)
        np.testing.assert_allclose(gradient[name], slope, rtol=0.02)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("name", ["sigma_xy", "sigma_rgb"])
def test_lattice_refuses_the_gradient_in_its_sigmas(name):
    p, image = problem(4, 5)

    def loss(sigma):
        return jnp.sum(dense_crf(p, image, **{**PARAMETERS, name: sigma})[..., 0])

    with pytest.raises(ValueError, match="exact=True"):
        jax.grad(loss)(2.0)


def test_gradient_reaches_probabilities():
    p, image = problem(4, 5)
    target = np.random.RandomState(1).normal(size=p.shape).astype(np.float32)
    direction = np.random.RandomState(2).normal(size=p.shape).astype(np.float32)

    @jax.jit
    def loss(logits):
        q = dense_crf(jax.nn.softmax(logits), image, **PARAMETERS)
        return jnp.sum(target * q)

    logits = np.log(p)
    slope = (loss(logits + 0.01 * direction) - loss(logits - 0.01 * direction)) / 0.02
    np.testing.assert_allclose(
        np.sum(jax.grad(loss)(logits) * direction), slope, rtol=0.02
    )


def test_without_weights_or_iterations_nothing_changes():
    p, image = problem()
    still = dict(PARAMETERS, w_bilateral=0.0, w_spatial=0.0)
    np.testing.assert_allclose(dense_crf(p, image, **still, exact=True), p, atol=1e-6)
    q = dense_crf(p, image, **PARAMETERS, iterations=0, exact=True)
    np.testing.assert_allclose(q, p, atol=1e-6)


def test_presets_give_all_that_has_no_default():
    parameters = inspect.signature(dense_crf).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty}
    for preset in PRESETS.values():
        assert {"probabilities", "image", *preset} == needed
    assert dict(PRESETS["deconvnet"]) == dict(
        w_bilateral=5, sigma_xy=20, sigma_rgb=3, w_spatial=3, sigma_spatial=3
    )


def test_bad_input_is_refused_with_the_cure():
    p, image = problem(4, 5)
    negative, not_finite, not_normal = p.copy(), p.copy(), 2 * p
    negative[0, 0] = [-0.1, 0.6, 0.5]
    not_finite[1, 2, 0] = np.nan
    cases = [
        ((p, image[:3]), {}, "resize the logits"),
        ((p, image.astype(np.float32)), {}, "uint8 RGB"),
        ((p, image[..., :1]), {}, "uint8 RGB"),
        ((p[..., 0], image), {}, "expected floating"),
        ((p.argmax(-1)[..., None], image), {}, "expected floating"),
        ((negative, image), {}, "probability is -0.1"),
        ((not_finite, image), {}, "softmax of finite logits"),
        ((not_normal, image), {}, "from 1 by up to 1;"),
        ((p, image[None]), {}, "resize the logits"),
        ((p, image), dict(valid=np.ones((4, 4), bool)), r"valid .* \[4, 5\]"),
        ((p, image), dict(sigma_xy=0.0), "sigma_xy is 0.0"),
        ((p, image), dict(sigma_rgb=-1.0), "sigma_rgb is -1.0"),
        ((p, image), dict(sigma_spatial=float("nan")), "sigma_spatial is nan"),
        ((p, image), dict(iterations=-1), "iterations is -1"),
    ]
    for arrays, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            dense_crf(*arrays, **{**PARAMETERS, **changes})
    with pytest.raises(ValueError, match="Python number"):
        jax.jit(lambda s: dense_crf(p, image, **{**PARAMETERS, "sigma_spatial": s}))(
            1.0
        )
