import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses import by_columns, cross_entropy, divide

# Two classes. Pixel 0: probabilities (1/4, 3/4), label 1. Pixel 1: (1/2, 1/2),
# label 0. Pixel 2: void.
LOGITS = jnp.array([[0.0, math.log(3.0)], [2.0, 2.0], [5.0, -5.0]])
LABEL = jnp.array([1, 0, 255], jnp.uint8)
WEIGHTS = jnp.array([3.0, 0.5])
NLL = (math.log(4 / 3), math.log(2.0))


def loss(logits, label=LABEL, **kwargs):
    return divide(*cross_entropy(logits, label, **kwargs))


def test_sum_and_pixels_by_hand():
    total, pixels = cross_entropy(LOGITS, LABEL)
    np.testing.assert_allclose(total, sum(NLL), rtol=1e-6)
    assert pixels == 2


def test_gradient_by_hand():
    # (softmax - onehot) / valid pixels; nothing at the void pixel.
    expected = [[1 / 8, -1 / 8], [-1 / 4, 1 / 4], [0, 0]]
    np.testing.assert_allclose(jax.grad(loss)(LOGITS), expected, atol=1e-7)


@pytest.mark.parametrize(
    "denominator, divisor", [("pixels", 2.0), ("weights", 3.5), ("none", 1.0)]
)
def test_weighted_denominators_by_hand(denominator, divisor):
    weighted = 0.5 * NLL[0] + 3.0 * NLL[1]
    result = loss(LOGITS, class_weights=WEIGHTS, denominator=denominator)
    np.testing.assert_allclose(result, weighted / divisor, rtol=1e-6)


def test_weights_scale_the_gradient_of_their_class():
    expected = np.array([[1 / 4, -1 / 4], [-1 / 2, 1 / 2], [0, 0]])
    expected *= np.array([[0.5], [3.0], [1.0]])
    gradient = jax.grad(lambda x: loss(x, class_weights=WEIGHTS, denominator="none"))(
        LOGITS
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_void_logits_reach_neither_value_nor_gradient(bad):
    broken = LOGITS.at[2, 0].set(bad)
    assert loss(broken) == loss(LOGITS)
    gradient = jax.grad(loss)(broken)
    np.testing.assert_array_equal(gradient, jax.grad(loss)(LOGITS))


def test_pixels_of_any_batch_can_be_counted():
    """No sum in int32 runs over as many of them as it cannot count."""
    shape = (2048, 1024, 1024)
    program = jax.make_jaxpr(cross_entropy)(
        jax.ShapeDtypeStruct((*shape, 2), np.float32),
        jax.ShapeDtypeStruct(shape, np.uint8),
    )
    sums = [
        (eqn.invars[0].aval, eqn.outvars[0].aval)
        for eqn in program.eqns
        if eqn.primitive.name == "reduce_sum"
    ]
    counted = [(a, b) for a, b in sums if np.issubdtype(a.dtype, np.integer)]
    assert counted
    assert all(a.size // b.size < 2**31 for a, b in counted)


@pytest.mark.parametrize("denominator", ["pixels", "weights", "none"])
def test_all_void_is_zero(denominator):
    void = jnp.full((3,), 255, jnp.uint8)

    def all_void(logits):
        return loss(logits, void, class_weights=WEIGHTS, denominator=denominator)

    value, gradient = jax.value_and_grad(all_void)(LOGITS)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_shards_add_up_whatever_their_fraction_of_void():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (4, 3, 5, 6))
    label = jax.random.randint(key, (4, 3, 5), 0, 6).at[0].set(255).at[1, 0].set(255)
    weights = jnp.arange(1.0, 7.0)
    for denominator in ("pixels", "weights", "none"):
        kwargs = {"class_weights": weights, "denominator": denominator}
        whole = loss(logits, label, **kwargs)
        sums = [cross_entropy(*shard, **kwargs) for shard in zip(logits, label)]
        total, divisor = map(sum, zip(*sums))
        np.testing.assert_allclose(divide(total, divisor), whole, rtol=1e-6)


def test_small_weights_divide_as_any_others():
    kwargs = {"denominator": "weights"}
    small = loss(LOGITS, class_weights=WEIGHTS / 100, **kwargs)
    np.testing.assert_allclose(small, loss(LOGITS, class_weights=WEIGHTS, **kwargs))


def test_another_ignore_index():
    label = jnp.array([1, 0, -1], jnp.int32)
    assert loss(LOGITS, label, ignore_index=-1) == loss(LOGITS)
    # Void may also be one of the classes' own numbers, as 0 in ADE20K.
    first = loss(LOGITS[:2], LABEL[:2], ignore_index=0, class_weights=WEIGHTS)
    np.testing.assert_allclose(first, 0.5 * NLL[0], rtol=1e-6)


def test_impossible_other_class_is_harmless():
    logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    label = jnp.array([1])
    value, gradient = jax.value_and_grad(loss)(logits, label)
    np.testing.assert_allclose(value, math.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0.0]], atol=1e-7)


def test_huge_logits_and_bfloat16_are_computed_in_float32():
    logits = jnp.array([[1e4, 1e4 + 1]])
    label = jnp.array([0])
    np.testing.assert_allclose(
        loss(logits, label), 1 + math.log(1 + math.exp(-1)), rtol=1e-6
    )
    coarse = LOGITS.astype(jnp.bfloat16)
    total, pixels = cross_entropy(coarse, LABEL)
    assert total.dtype == pixels.dtype == jnp.float32
    assert total == cross_entropy(coarse.astype(jnp.float32), LABEL)[0]
    assert jax.grad(loss)(coarse).dtype == jnp.bfloat16


@pytest.mark.parametrize("label", [[2, 0, 255], [1, -1, 255]])
def test_label_out_of_range_is_not_trained_on(label):
    assert jnp.isnan(jax.jit(loss)(LOGITS, jnp.array(label)))


@pytest.mark.parametrize(
    "label, kwargs, message",
    [
        (LABEL[:2], {}, "expected labels of shape"),
        (LABEL.astype(jnp.float32), {}, "integers"),
        (LABEL, {"denominator": "mean"}, "known: pixels, weights, none"),
        (LABEL, {"class_weights": [1.0, 2.0, 3.0]}, "class_weights"),
        (LABEL, {"label_smoothing": 2.0}, "label_smoothing"),
    ],
)
def test_bad_arguments(label, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(LOGITS, label, **kwargs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_torch(weighted, smoothing, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    label = rng.integers(0, 5, (2, 3, 4))
    label[rng.random(label.shape) < 0.3] = 255
    weights = rng.random(5).astype(np.float32) if weighted else None

    theirs = torch.from_numpy(logits).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(label),
        weight=None if weights is None else torch.from_numpy(weights),
        ignore_index=255,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    expected.backward()
    value, gradient = jax.value_and_grad(loss)(
        logits,
        label,
        class_weights=weights,
        denominator="weights" if reduction == "mean" else "none",
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, theirs.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_by_columns_is_the_same_loss(chunks):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 12, 4)).astype(np.float32)
    label = rng.choice([0, 1, 2, 3, 255], (2, 5, 12)).astype(np.uint8)
    loss_fn = functools.partial(
        cross_entropy, class_weights=np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    )

    def mean(logits, loss_fn):
        return 3 * divide(*loss_fn(logits, label))

    value = jax.value_and_grad(mean)
    expected = value(logits, loss_fn)
    got = jax.jit(lambda x: value(x, by_columns(loss_fn, chunks)))(logits)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_by_columns_makes_no_other_tensor_of_the_size_of_the_logits():
    """Beside logits of 16 MB and their gradient the plain loss takes three times that."""
    logits = jax.ShapeDtypeStruct((1, 128, 128, 256), jnp.float32)
    label = jax.ShapeDtypeStruct((1, 128, 128), jnp.uint8)

    def memory(chunks):
        loss_fn = by_columns(cross_entropy, chunks)
        gradient = jax.grad(lambda x, y: divide(*loss_fn(x, y)))
        compiled = jax.jit(gradient).lower(logits, label).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    assert memory(1) > 32
    assert memory(16) < 4


@pytest.mark.parametrize("chunks, message", [(0, "chunks is 0"), (5, "the width 12")])
def test_chunks_that_do_not_divide_are_refused(chunks, message):
    logits, label = jnp.zeros((1, 2, 12, 3)), jnp.zeros((1, 2, 12), jnp.uint8)
    with pytest.raises(ValueError, match=message):
        by_columns(cross_entropy, chunks)(logits, label)


def test_only_sums_are_divided():
    with pytest.raises(AssertionError, match="rank"):
        divide(jnp.ones((2, 3)), jnp.ones(()))


@pytest.mark.parametrize(
    ("logits", "arguments", "message"),
    [
        (jnp.zeros((2, 0)), {}, "at least 1 class"),
        (jnp.zeros(()), {}, "at least 1 class"),
        (jnp.zeros((2, 3), int), {}, "logits must be floating"),
        (jnp.zeros((2, 2)), {"class_weights": np.array([1, -1])}, "at least 0"),
        (jnp.zeros((2, 2)), {"class_weights": np.array([1, np.nan])}, "finite"),
        (jnp.zeros((2, 2)), {"class_weights": jnp.array([1, jnp.inf])}, "finite"),
    ],
)
def test_impossible_logits_and_weights_are_named(logits, arguments, message):
    label = jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, label, **arguments)


def test_no_pixels_have_no_loss():
    logits, label = jnp.zeros((0, 3)), jnp.zeros(0, jnp.uint8)
    assert [float(x) for x in cross_entropy(logits, label)] == [0, 0]


def test_chunks_need_maps():
    with pytest.raises(ValueError, match=r"chunks is 1\.5"):
        by_columns(cross_entropy, 1.5)
    with pytest.raises(ValueError, match=r"expected \[B, H, W\]"):
        by_columns(cross_entropy, 2)(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
