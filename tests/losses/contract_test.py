"""What every loss must do, whatever it computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.losses import LOSSES, apply_loss, by_columns, combine, divide
from jaxseg.utils.collectives import psum_over

CASES = {
    **LOSSES,
    "cl_dice_batch": partial(LOSSES["cl_dice"], per="batch", absent="count"),
    "dice_batch": partial(LOSSES["dice"], per="batch", squared=True),
    "dice_count": partial(LOSSES["dice"], absent="count", smooth=1.0),
    "generalized_batch": partial(LOSSES["generalized_dice"], per="batch"),
    "jaccard_batch": partial(LOSSES["jaccard"], per="batch", absent="count"),
    "lovasz_batch": partial(LOSSES["lovasz_softmax"], per="batch"),
    "lovasz_count": partial(LOSSES["lovasz_softmax"], absent="count"),
    "top_k": partial(
        LOSSES["ohem_cross_entropy"],
        threshold=0.0,
        min_fraction=0.3,
        denominator="none",
    ),
}
SHAPE = (4, 8, 12, 3)
WEIGHTS = np.array([0.5, 1.0, 3.0], np.float32)
losses = pytest.mark.parametrize("loss_fn", CASES.values(), ids=CASES)


def make_batch(shape=SHAPE):
    """Images with all, half and no void pixels; class 2 is in the last image only."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=shape).astype(np.float32)
    label = rng.integers(0, 2, shape[:-1]).astype(np.uint8)
    label[-1] = rng.integers(0, 3, shape[1:-1])
    label[0] = 255
    label[1, :4] = 255
    label[2, 3, 2:] = 255
    return logits, label


def value_and_grad(loss_fn, logits, label):
    return jax.jit(
        jax.value_and_grad(lambda x: divide(*loss_fn(x, jnp.asarray(label))))
    )(jnp.asarray(logits))


@losses
def test_void_logits_change_neither_value_nor_gradient(loss_fn):
    logits, label = make_batch()
    value, gradient = value_and_grad(loss_fn, logits, label)
    assert np.isfinite(value)
    assert np.abs(gradient).max() > 0
    np.testing.assert_array_equal(gradient[label == 255], 0)
    void = np.argwhere(label == 255)
    for index, bad in enumerate((np.nan, np.inf, -np.inf, 1e30)):
        logits[tuple(void[index::4].T)] = bad
    again, same = value_and_grad(loss_fn, logits, label)
    assert again == value
    np.testing.assert_array_equal(gradient, same)


@losses
def test_without_valid_pixels_the_loss_and_its_gradient_are_zero(loss_fn):
    logits, label = make_batch()
    total, denominator = loss_fn(logits, jnp.full_like(label, 255))
    assert (float(total), float(denominator)) == (0, 0)
    value, gradient = value_and_grad(loss_fn, logits, np.full_like(label, 255))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@losses
def test_other_labels_make_the_loss_nan(loss_fn):
    logits, label = make_batch()
    label[3, 0, 0] = 3
    assert np.isnan(loss_fn(logits, jnp.asarray(label))[0])


@losses
def test_bfloat16_logits_are_computed_in_float32(loss_fn):
    logits, label = make_batch()
    logits = jnp.asarray(logits, jnp.bfloat16)
    low, high = loss_fn(logits, label), loss_fn(logits.astype(jnp.float32), label)
    assert low[0].dtype == low[1].dtype == jnp.float32
    np.testing.assert_array_equal(low, high)


@losses
def test_saturated_probabilities_have_finite_gradients(loss_fn):
    """Right and wrong pixels with probabilities of exactly 1 and 0."""
    label = make_batch()[1]
    is_label = np.eye(3, dtype=np.float32)[np.where(label == 255, 0, label)]
    is_label[2] = np.roll(is_label[2], 1, axis=-1)
    value, gradient = value_and_grad(loss_fn, 200 * is_label, label)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@losses
def test_a_network_that_diverged_has_no_finite_loss(loss_fn):
    logits, label = make_batch()
    logits[3, 2, 2] = np.nan
    assert not np.isfinite(loss_fn(logits, label)[0])


@losses
def test_wrong_shapes_and_types_are_refused(loss_fn):
    logits, label = make_batch()
    for arguments, message in (
        ((logits, label[:, 1:]), r"labels have shape \(4, 7, 12\)"),
        ((logits, label.astype(np.float32)), "labels must be integers"),
        ((logits.astype(np.int32), label), "logits must be floating"),
        ((logits[..., :0], label), "at least 1 class"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_fn(*map(jnp.asarray, arguments))
    with pytest.raises(ValueError, match="class_weights has shape"):
        loss_fn(logits, label, class_weights=np.ones(2))


def all_losses():
    """Each with another weight, so that no gradient makes up for another."""
    return combine(
        {
            name: (
                0.3 + index / 10,
                loss_fn
                if index % 2
                else partial(loss_fn, class_weights=jnp.asarray(WEIGHTS)),
            )
            for index, (name, loss_fn) in enumerate(CASES.items())
        }
    )


def compute(logits, label, axis_name=None):
    """Values of all losses, and the gradient of their sum, as in a training step."""

    def loss(logits):
        result = apply_loss(all_losses(), logits, label, axis_name)
        values = jax.tree.map(divide, *psum_over(result, axis_name))
        return sum(values.values()), values

    gradient, values = jax.grad(loss, has_aux=True)(logits)
    devices = psum_over(1, axis_name)
    return values, gradient / devices


@pytest.fixture(scope="module")
def expected():
    return jax.jit(compute)(*make_batch())


def check(found, expected):
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=2e-6, err_msg=name)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[1] / scale, expected[1] / scale, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_arrays_split_over_devices_by_images_and_rows(shape, expected):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "space"))
    split = NamedSharding(mesh, PartitionSpec("data", "space"))
    check(jax.jit(compute)(*jax.device_put(make_batch(), split)), expected)


def test_shard_map_equals_one_device(expected):
    data = PartitionSpec("data")
    found = jax.jit(
        jax.shard_map(
            partial(compute, axis_name="data"),
            mesh=Mesh(np.array(jax.devices()), ("data",)),
            in_specs=(data, data),
            out_specs=(PartitionSpec(), data),
            check_vma=False,
        )
    )(*make_batch())
    check(found, expected)


def test_pmap_equals_one_device(expected):
    logits, label = make_batch()
    values, gradient = jax.pmap(
        partial(compute, axis_name="data"), "data", out_axes=(None, 0)
    )(logits[:, None], label[:, None])
    check((values, gradient.reshape(logits.shape)), expected)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_entropy", "focal"}))
def test_losses_that_are_not_sums_over_pixels_have_no_chunks(name):
    assert by_columns(LOSSES[name], 1) is LOSSES[name]
    with pytest.raises(ValueError, match="needs whole images; set chunks to 1"):
        by_columns(LOSSES[name], 2)


def test_chunks_of_the_focal_loss_equal_the_whole():
    batch = make_batch()
    for a, b in zip(
        value_and_grad(by_columns(LOSSES["focal"], 3), *batch),
        value_and_grad(LOSSES["focal"], *batch),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
