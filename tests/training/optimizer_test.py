import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.training.optimizer import create_optimizer, create_schedule

SCHEDULES = [
    ("constant", {}),
    ("step", {"every": 30}),
    ("step", {"boundaries": (50, 80)}),
    ("poly", {}),
    ("cosine", {}),
]
CONSTANT = create_schedule("constant", learning_rate=0.1, steps=10)


def params():
    """Two layers, a convolution and a BatchNorm each, all of it different."""
    rng = np.random.default_rng(0)
    leaves = {"conv": {"kernel": (2, 3), "bias": (3,)}, "bn": {"scale": (3,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        {"encoder": leaves, "head": {"conv": leaves["conv"]}},
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(step):
    """Gradients that differ from step to step."""
    return jax.tree.map(lambda w: jnp.cos(w + step), params())


def run(optimizer, steps, gradients=gradients):
    weights = params()
    state = optimizer.init(weights)

    @jax.jit
    def update(weights, state, gradient):
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    for step in range(steps):
        weights, state = update(weights, state, gradients(step))
    return weights


def movement(optimizer, steps=1, gradients=gradients):
    return jax.tree.map(
        lambda a, b: np.asarray(a - b), run(optimizer, steps, gradients), params()
    )


@pytest.mark.parametrize(
    "name, kwargs, expected",
    [
        ("constant", {}, {0: 2, 50: 2, 100: 2}),
        ("step", {"every": 30}, {0: 2, 29: 2, 30: 0.2, 60: 0.02, 100: 0.002}),
        ("step", {"boundaries": (50, 80), "decay": 0.5}, {49: 2, 50: 1, 80: 0.5}),
        ("poly", {}, {0: 2, 50: 2 * 0.5**0.9, 90: 2 * 0.1**0.9, 100: 0, 120: 0}),
        ("poly", {"power": 1.0}, {0: 2, 25: 1.5, 100: 0}),
        ("cosine", {}, {0: 2, 25: 1 + math.sqrt(0.5), 50: 1, 100: 0, 120: 0}),
    ],
)
def test_schedule_at_known_steps(name, kwargs, expected):
    schedule = create_schedule(name, learning_rate=2.0, steps=100, **kwargs)
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-7)
        assert jax.jit(schedule)(jnp.int32(step)) == pytest.approx(schedule(step))


@pytest.mark.parametrize("name, kwargs", SCHEDULES)
def test_warmup_is_linear_and_leaves_the_rest_alone(name, kwargs):
    plain = create_schedule(name, learning_rate=2.0, steps=100, **kwargs)
    warm = create_schedule(name, learning_rate=2.0, steps=100, warmup_steps=4, **kwargs)
    steps = np.arange(101)
    share = np.minimum((steps + 1) / 5, 1)
    np.testing.assert_allclose(
        jax.vmap(warm)(steps), share * jax.vmap(plain)(steps), rtol=1e-6
    )
    assert warm(0) > 0


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "linear"}, "Known: constant, step, poly, cosine"),
        ({"name": "poly", "learning_rate": 0}, "learning_rate=0, .* must be positive"),
        ({"name": "step"}, "either boundaries or every"),
        ({"name": "step", "every": 3, "boundaries": (2,)}, "either boundaries or"),
    ],
)
def test_bad_schedule(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_schedule(**{"learning_rate": 1.0, "steps": 10, **kwargs})


def test_sgd_by_hand():
    # v = 1, 1.5, 1.75: the gradient 1 with momentum 0.5, decay off.
    ones = jax.tree.map(jnp.ones_like, params())
    moved = movement(create_optimizer("sgd", CONSTANT, momentum=0.5), 3, lambda _: ones)
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, -0.1 * (1 + 1.5 + 1.75), rtol=1e-5)


@pytest.mark.parametrize("name, decay", [("sgd", 0.3), ("adamw", 0.3), ("sgd", 0.0)])
def test_equals_torch(name, decay):
    torch = pytest.importorskip("torch")
    schedule = create_schedule("poly", learning_rate=0.1, steps=8, warmup_steps=2)
    ours = run(create_optimizer(name, schedule, weight_decay=decay), 6)

    leaves, tree = jax.tree.flatten(params())
    names = [str(path[-1].key) for path, _ in jax.tree.leaves_with_path(params())]
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in leaves]
    groups = [
        {"params": [w], "weight_decay": decay if name == "kernel" else 0.0}
        for w, name in zip(theirs, names)
    ]
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(schedule(k)))
    for step in range(6):
        for weight, gradient in zip(theirs, jax.tree.leaves(gradients(step))):
            weight.grad = torch.from_numpy(np.array(gradient))
        optimizer.step()
        rate.step()
    expected = tree.unflatten([w.detach().numpy() for w in theirs])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        ours,
        expected,
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_decay_reaches_kernels_or_all(name, decay_all):
    zeros = jax.tree.map(jnp.zeros_like, params())
    optimizer = create_optimizer(
        name, CONSTANT, weight_decay=0.5, decay_all=decay_all, momentum=0.0
    )
    moved = movement(optimizer, 1, lambda _: zeros)
    for (path, leaf), weight in zip(
        jax.tree.leaves_with_path(moved), jax.tree.leaves(params())
    ):
        decays = decay_all or path[-1].key == "kernel"
        expected = -0.1 * 0.5 * weight if decays else 0 * weight
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_multipliers_scale_the_whole_movement(name):
    pairs = (("*/bias", 2.0), ("head/*", 10.0))
    kwargs = {"weight_decay": 0.1}
    plain = movement(create_optimizer(name, CONSTANT, **kwargs))
    scaled = movement(create_optimizer(name, CONSTANT, lr_multipliers=pairs, **kwargs))
    by = {
        "encoder": {"conv": {"kernel": 1, "bias": 2}, "bn": {"scale": 1}},
        "head": {"conv": {"kernel": 10, "bias": 20}},
    }
    jax.tree.map(
        lambda a, m, b: np.testing.assert_allclose(a, m * b, rtol=2e-5, atol=1e-6),
        scaled,
        by,
        plain,
    )


def test_momentum_builds_up_as_under_a_learning_rate_of_its_own():
    large = create_schedule("constant", learning_rate=1.0, steps=10)
    kwargs = {"weight_decay": 0.1, "decay_all": True}
    scaled = run(
        create_optimizer("sgd", CONSTANT, lr_multipliers=[("*", 10.0)], **kwargs), 4
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        scaled,
        run(create_optimizer("sgd", large, **kwargs), 4),
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_does_not_move_even_by_decay_or_nan(name):
    def broken(step):
        return {
            **gradients(step),
            "encoder": jax.tree.map(
                lambda w: jnp.full_like(w, jnp.nan), params()["encoder"]
            ),
        }

    optimizer = create_optimizer(
        name,
        CONSTANT,
        weight_decay=0.1,
        decay_all=True,
        clip_norm=1.0,
        lr_multipliers=(("encoder/*", 0.0),),
    )
    moved = movement(optimizer, 3, broken)
    for leaf in jax.tree.leaves(moved["encoder"]):
        np.testing.assert_array_equal(leaf, 0)
    for leaf in jax.tree.leaves(moved["head"]):
        assert np.all(np.isfinite(leaf)) and np.all(leaf != 0)


def test_clipping_by_the_norm_of_what_is_trained():
    head = jax.tree.leaves(gradients(0)["head"])
    norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in head))
    moved = movement(
        create_optimizer(
            "sgd", CONSTANT, clip_norm=norm / 4, lr_multipliers=(("encoder/*", 0),)
        )
    )
    for leaf, gradient in zip(jax.tree.leaves(moved["head"]), head):
        np.testing.assert_allclose(leaf, -0.1 * gradient / 4, rtol=1e-4, atol=1e-7)
    # A smaller gradient stays as it is.
    moved = movement(create_optimizer("sgd", CONSTANT, clip_norm=1e3))
    np.testing.assert_allclose(
        moved["head"]["conv"]["bias"],
        -0.1 * gradients(0)["head"]["conv"]["bias"],
        rtol=1e-4,
        atol=1e-7,
    )


def test_accumulation_averages_and_counts_updates():
    schedule = create_schedule("step", learning_rate=0.1, steps=4, boundaries=(1,))
    kwargs = {"weight_decay": 0.1, "clip_norm": 1.0}

    def averaged(update):
        batches = [gradients(3 * update + i) for i in range(3)]
        return jax.tree.map(lambda *g: sum(g) / 3, *batches)

    once = create_optimizer("sgd", schedule, **kwargs)
    thrice = create_optimizer("sgd", schedule, accumulate_steps=3, **kwargs)
    for batches in (6, 8):  # the last two of eight wait for a ninth
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            run(thrice, batches),
            run(once, 2, averaged),
        )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "lion"}, "Known: sgd, adamw"),
        ({"momentum": 1.0}, "momentum=1.0 is out of range"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is out of range"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 is out of range"),
        ({"accumulate_steps": 0}, "accumulate_steps=0 is out of range"),
        ({"lr_multipliers": (("*", -1.0),)}, "multiplier -1.0 of .* out of range"),
    ],
)
def test_bad_optimizer(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_optimizer(**{"name": "sgd", "schedule": CONSTANT, **kwargs})


def test_pattern_without_parameter_is_an_error_that_shows_some():
    optimizer = create_optimizer("sgd", CONSTANT, lr_multipliers=(("haed/*", 10),))
    with pytest.raises(ValueError, match=r"'haed/\*'.*head/conv/kernel"):
        optimizer.init(params())


def test_decay_without_kernels_is_an_error():
    optimizer = create_optimizer("sgd", CONSTANT, weight_decay=0.1)
    with pytest.raises(ValueError, match="decay_all"):
        optimizer.init({"w": jnp.ones(3)})
