"""The train step: its arithmetic, and its equality under every backend."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses import (
    combine,
    cross_entropy,
    dice,
    focal,
    jaccard,
    lovasz_softmax,
)
from jaxseg.models import create_model
from jaxseg.models.blocks import ConvBlock
from jaxseg.models.freezing import frozen_layers
from jaxseg.models.layers import batch_norm, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.models.outputs import apply_in_training
from jaxseg.ops.image_normalization import Normalization
from jaxseg.parallel.mesh import BACKENDS, create_parallel
from jaxseg.training.step import batch_statistics, create_state, train_step

NORMALIZATION = Normalization(mean=(120.0,), std=(60.0,))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (4, 16, 24)).astype(np.uint8)
    # Void is spread unevenly, so that a mean of the devices' means is another number.
    label[0] = 255
    label[1, :10] = 255
    image = rng.integers(0, 256, (4, 16, 24, 3)).astype(np.uint8)
    return {"image": image, "label": label}


def _create_state(model, optimizer, ema=False):
    create = partial(create_state, model, optimizer, image_shape=(16, 24, 3), ema=ema)
    return jax.jit(create)(key=jax.random.key(0))


def step_of(model, optimizer, **changes):
    """The training step of a model, with the loss and normalization of this file."""
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss_fn=cross_entropy,
        normalization=NORMALIZATION,
        **changes,
    )


def _train(backend, devices, batch, steps=3):
    parallel = create_parallel(backend, devices)
    model = create_model(
        "segnet",
        3,
        width=4,
        depths=(1, 2, 1),
        dropout=0.5,
        axis_name=parallel.axis_name,
    )
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = jax.jit(
        partial(create_state, model, optimizer, image_shape=(16, 24, 3)),
        out_shardings=parallel.replicated,
    )(key=jax.random.key(0))
    step = parallel.compile(step_of(model, optimizer))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, parallel.place(batch))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def reference(batch):
    return _train("jit", 1, batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_devices_equal_one(backend, batch, reference):
    """Losses, parameters and statistics, with uneven void and with dropout."""
    expected, expected_losses = reference
    state, losses = _train(backend, 4, batch)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for tree in ("params", "batch_stats", "opt_state"):
        for a, b in zip(
            jax.tree.leaves(getattr(expected, tree)),
            jax.tree.leaves(getattr(state, tree)),
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_loss_is_the_mean_over_all_valid_pixels(batch):
    """Against a plain computation from the step's own formula."""
    model = create_model("segnet", 3, width=4, depths=(1,))
    optimizer = optax.sgd(0.0)
    state = _create_state(model, optimizer)
    new, metrics = jax.jit(step_of(model, optimizer))(state, batch)
    logits, _ = model.apply(
        state.variables,
        (batch["image"].astype(np.float32) - 120) / 60,
        train=True,
        mutable=["batch_stats"],
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    valid = batch["label"] != 255
    picked = np.take_along_axis(
        log_p, np.where(valid, batch["label"], 0)[..., None].astype(int), -1
    )[..., 0]
    np.testing.assert_allclose(metrics["loss"], -picked[valid].mean(), rtol=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_over_four_devices_equal_one(backend, batch):
    """Losses of the whole batch, of images and of pixels, with uneven void."""
    loss_fn = combine(
        {
            "dice": (0.5, partial(dice, per="batch")),
            "lovasz": (2.0, partial(lovasz_softmax, per="batch")),
            "jaccard": (1.0, jaccard),
            "focal": (1.0, focal),
        }
    )
    optimizer, found = optax.sgd(0.1), []
    for name, devices in (("jit", 1), (backend, 4)):
        parallel = create_parallel(name, devices)
        model = create_model(
            "segnet", 3, width=4, depths=(1,), axis_name=parallel.axis_name
        )
        state = jax.jit(
            partial(create_state, model, optimizer, image_shape=(16, 24, 3)),
            out_shardings=parallel.replicated,
        )(key=jax.random.key(0))
        step = partial(step_of(model, optimizer), loss_fn=loss_fn)
        found.append(parallel.compile(step)(state, parallel.place(batch)))
    (one, expected), (four, metrics) = found
    assert set(metrics) == {"loss", "grad_norm"} | {
        f"loss_{name}" for name in ("dice", "lovasz", "jaccard", "focal")
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    terms = [value for name, value in metrics.items() if name.startswith("loss_")]
    np.testing.assert_allclose(sum(terms), metrics["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_normalization_by_channel():
    image = np.array([[[[0, 128, 255]]]], np.uint8)
    y = Normalization(mean=(0.0, 128.0, 127.0), std=(1.0, 2.0, 64.0))(image)
    np.testing.assert_allclose(y, [[[[0, 0, 2]]]])


def test_batch_statistics_are_those_of_the_batch_alone(batch):
    """The first layer's mean and variance by hand, whatever the running ones were."""
    model = create_model("segnet", 3, width=4, depths=(1, 1))
    state = _create_state(model, optax.sgd(0.1))
    state = state.replace(batch_stats=jax.tree.map(lambda x: x + 7, state.batch_stats))
    stats = jax.jit(
        partial(batch_statistics, model=model, normalization=NORMALIZATION)
    )(state, batch)
    conv = state.params["encoder"]["stage1"]["conv1"]
    x = jax.lax.conv_general_dilated(
        NORMALIZATION(batch["image"]),
        conv["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x + jnp.reshape(conv["bias"], (1, 1, 1, -1))
    got = stats["encoder"]["stage1"]["bn1"]
    np.testing.assert_allclose(got["mean"], x.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["var"], x.var((0, 1, 2)), rtol=1e-3, atol=1e-4)


def test_bfloat16_logits_change_the_loss_by_their_rounding(batch):
    """Eight bits of them are kept: the loss and its gradient move by less than 1 %."""

    def loss_and_norm(**dtype):
        model = create_model("segnet", 3, width=4, depths=(1,), **dtype)
        state = _create_state(model, optax.sgd(0.1))
        _, metrics = jax.jit(step_of(model, optax.sgd(0.1)))(state, batch)
        return np.array([metrics["loss"], metrics["grad_norm"]])

    expected = loss_and_norm()
    got = loss_and_norm(logits_dtype="bfloat16")
    assert np.any(got != expected)
    np.testing.assert_allclose(got, expected, rtol=1e-2)


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_parameters_are_averaged_with_weights_that_sum_to_one(batch, decay):
    """By hand: the newest has weight 1 and each step back `decay` times less."""
    model = create_model("segnet", 3, width=4, depths=(1,))
    optimizer = optax.sgd(0.1)
    state = _create_state(model, optimizer, ema=True)
    step = jax.jit(step_of(model, optimizer, ema_decay=decay))
    seen = []
    for _ in range(3):
        state, _ = step(state, batch)
        seen.append(jax.tree.leaves(state.params))
    weights = decay ** np.arange(2, -1, -1)
    for got, *values in zip(jax.tree.leaves(state.ema), *seen):
        expected = sum(w * v for w, v in zip(weights, values)) / weights.sum()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert state.variables["params"] is state.ema


def test_losses_of_auxiliary_heads_are_added_by_their_weights(batch):
    """The loss is affine in the weight, and what it adds is the head's own loss."""

    def build(aux_weight):
        return create_model(
            "fcn_resnet50",
            3,
            aux_weight=aux_weight,
            encoder_kwargs=dict(width=4, depths=(1, 1, 1, 1)),
        )

    model, optimizer = build(0.5), optax.sgd(0.1)
    state = _create_state(model, optimizer)

    @partial(jax.jit, static_argnums=0)
    def step(model):
        state_, metrics = train_step(
            state,
            batch,
            model=model,
            optimizer=optimizer,
            loss_fn=cross_entropy,
            normalization=NORMALIZATION,
        )
        return state_.params, metrics["loss"]

    @jax.jit
    def losses():
        output = apply_in_training(
            model,
            state.variables,
            NORMALIZATION(batch["image"]),
            jax.random.fold_in(state.key, state.step),
        )
        ((_, aux),) = output.auxiliary
        totals = (cross_entropy(x, batch["label"]) for x in (output.logits, aux))
        return [total / denominator for total, denominator in totals]

    main, aux = losses()
    params, loss = step(model)
    np.testing.assert_allclose(loss, main + 0.5 * aux, rtol=1e-5)
    unmoved, loss = step(build(0.0))
    np.testing.assert_allclose(loss, main, rtol=1e-5)
    before = state.params["auxiliary_0"]["head"]["kernel"]
    assert np.any(params["auxiliary_0"]["head"]["kernel"] != before)
    np.testing.assert_array_equal(unmoved["auxiliary_0"]["head"]["kernel"], before)


def _running(**kwargs):
    """A BatchNorm that never looks at the batch."""
    return batch_norm(**kwargs | {"use_running_average": True})


class _TwoBlocks(nn.Module):
    """A net with BatchNorm on both sides of what is frozen."""

    norm: Callable[..., nn.Module]
    remat: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, image, *, train):
        block = partial(ConvBlock, options=LayerOptions(axis_name=self.axis_name))
        first = block((4, 4), norm=self.norm, name="encoder")
        x = run_stage(first, image, train=train, remat=self.remat)
        return block((3,), activation=None, name="decoder")(x, train=train)


@pytest.mark.parametrize(
    "backend,remat",
    [("jit", False), ("jit", True), ("shard_map", False), ("pmap", False)],
)
def test_frozen_statistics_are_used_and_kept(backend, remat, batch):
    """Equal to an encoder whose BatchNorm is built to use its running statistics."""
    parallel = create_parallel(backend, 2)

    def step(norm, freeze):
        model = _TwoBlocks(norm, remat, parallel.axis_name)
        optimizer = optax.sgd(0.1)
        state = jax.jit(
            partial(create_state, model, optimizer, image_shape=(16, 24, 3)),
            out_shardings=parallel.replicated,
        )(key=jax.random.key(0))
        state = state.replace(  # unlike any batch's
            batch_stats=jax.tree.map(lambda x: x + 0.5, state.batch_stats)
        )
        compiled = parallel.compile(
            step_of(model, optimizer, frozen=frozen_layers(state.batch_stats, freeze))
        )
        return state, *compiled(state, parallel.place(batch))

    before, frozen, metrics = step(batch_norm, ("encoder/*",))
    _, expected, expected_metrics = step(_running, ())
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(frozen)):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    same = jax.tree.map(np.array_equal, before.batch_stats, frozen.batch_stats)
    assert all(jax.tree.leaves(same.pop("encoder")))
    assert not any(jax.tree.leaves(same))
    moved = jax.tree.map(np.array_equal, before.params, frozen.params)
    assert not moved["encoder"]["bn1"]["scale"]  # a parameter like others


def test_recomputed_statistics_leave_frozen_layers_alone(batch):
    """The free layers' statistics are those behind a frozen layer that normalizes."""
    model = create_model("segnet", 3, width=4, depths=(1, 1))
    state = _create_state(model, optax.sgd(0.1))
    old = jax.tree.map(lambda x: x + 0.5, state.batch_stats)
    state = state.replace(batch_stats=old)
    stats = jax.jit(
        partial(
            batch_statistics,
            model=model,
            normalization=NORMALIZATION,
            frozen=frozen_layers(old, ("encoder/stage1/bn?",)),
        )
    )(state, batch)
    got = stats["encoder"]["stage1"]["bn1"]
    np.testing.assert_array_equal(got["mean"], old["encoder"]["stage1"]["bn1"]["mean"])
    np.testing.assert_array_equal(got["var"], old["encoder"]["stage1"]["bn1"]["var"])
    # What enters the second stage's BatchNorm, in inference: only the layer before it
    # counts, and that one is frozen.
    _, inside = model.apply(
        state.variables,
        NORMALIZATION(batch["image"]),
        train=False,
        capture_intermediates=lambda module, _: module.name == "conv1",
        mutable=["intermediates"],
    )
    *_, x = inside["intermediates"]["encoder"]["stage2"]["conv1"]["__call__"]
    got = stats["encoder"]["stage2"]["bn1"]
    np.testing.assert_allclose(got["mean"], x.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["var"], x.var((0, 1, 2)), rtol=1e-3, atol=1e-4)


def test_patterns_without_a_batch_norm_are_refused():
    stats = {"encoder": {"bn1": {"mean": 0.0, "var": 1.0}}}
    with pytest.raises(ValueError, match=r"'decoder/\*' .* such as encoder/bn1"):
        frozen_layers(stats, ("encoder/*", "decoder/*"))
    with pytest.raises(ValueError, match=r"none of .* 0 BatchNorm"):
        frozen_layers({}, ("*",))
