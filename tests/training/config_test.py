"""What a config means: its losses, and what changed since the last start."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.losses import cross_entropy, dice
from jaxseg.training import default_config
from jaxseg.training.config import create_loss
from jaxseg.training.errors import ConfigError
from jaxseg.utils import registry

LOGITS = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
LABEL = jax.random.randint(jax.random.key(1), (2, 4, 6), 0, 3)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Nothing that a test registers outlives it."""
    tables = {kind: dict(table) for kind, table in registry._REGISTERED.items()}
    monkeypatch.setattr(registry, "_REGISTERED", tables)


@pytest.fixture
def config():
    return default_config()


def scaled(logits, label, *, factor=2.0, label_smoothing=0.1):
    """Some number, so that its arguments can be told from it."""
    del logits
    return jnp.float32(factor + label_smoothing), jnp.float32(label.size)


def test_the_keys_of_cross_entropy_are_its_arguments(config):
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    config.loss.denominator = "weights"
    config.loss.label_smoothing = 0.2
    config.loss.class_weights = "median_frequency"
    config.loss.chunks = 2
    loss = create_loss(config, weights)(LOGITS, LABEL)
    expected = cross_entropy(
        LOGITS,
        LABEL,
        class_weights=weights,
        denominator="weights",
        label_smoothing=0.2,
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_registered_loss_receives_the_arguments_that_it_has(config):
    jaxseg.register("loss", "scaled")(scaled)
    config.loss.name = "scaled"
    total, denominator = create_loss(config, None)(LOGITS, LABEL)
    assert (float(total), float(denominator)) == (2.0, 48.0)
    config.loss.kwargs = {"factor": 5.0}
    config.loss.label_smoothing = 0.5
    assert float(create_loss(config, None)(LOGITS, LABEL)[0]) == 5.5


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({"name": "scald"}, None, r"config\.loss: .*did you mean 'scaled'"),
        ({"denominator": "none"}, None, r"config\.loss\.denominator='none', but"),
        ({"class_weights": "x"}, np.ones(3), r"config\.loss\.class_weights='x', but"),
        ({"kwargs": {"factr": 1}}, None, r"config\.loss\.kwargs: .*mean 'factor'"),
        ({"kwargs": {"label_smoothing": 1}}, None, r"set config\.loss\.label_smooth"),
        ({"chunks": 0}, None, r"config\.loss: chunks"),
    ],
)
def test_arguments_that_the_loss_does_not_have(config, changes, weights, message):
    jaxseg.register("loss", "scaled")(scaled)
    for key, value in ({"name": "scaled"} | changes).items():
        config.loss[key] = value
    with pytest.raises(ConfigError, match=message):
        create_loss(config, weights)


def test_terms_are_added_by_their_weights(config):
    config.loss.terms = (
        ("cross_entropy", 1.0, {}),
        ("dice", 0.5, {"per": "batch"}),
        ("dice", 2, {"squared": True}),
    )
    config.loss.label_smoothing = 0.2  # of the term that has it
    sums, denominators = create_loss(config, None)(LOGITS, LABEL)
    assert list(sums) == list(denominators) == ["cross_entropy", "dice", "dice_2"]
    for name, weight, (total, denominator) in (
        ("cross_entropy", 1, cross_entropy(LOGITS, LABEL, label_smoothing=0.2)),
        ("dice", 0.5, dice(LOGITS, LABEL, per="batch")),
        ("dice_2", 2, dice(LOGITS, LABEL, squared=True)),
    ):
        np.testing.assert_allclose(sums[name], weight * total, rtol=1e-6)
        assert denominators[name] == denominator


def test_terms_survive_the_metadata(config):
    """A stored config has lists in place of tuples."""
    config.loss.terms = (("dice", 0.5, {"classes": (1, 2)}),)
    first = create_loss(config, None)(LOGITS, LABEL)
    config.loss.terms = tuple(json.loads(json.dumps(config.loss.terms)))
    assert create_loss(config, None)(LOGITS, LABEL) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (("dyce", 1.0, {}),)}, r"loss\.terms\[0\]: .*did you mean 'dice'"),
        (
            {"terms": (("dice", 1.0, {}), ("focal", 1.0, {"gama": 1}))},
            r"config\.loss\.terms\[1\]\.kwargs: the loss 'focal' has .*mean 'gamma'",
        ),
        ({"terms": (("dice", 1.0, {"axis_name": "x"}),)}, "no argument 'axis_name'"),
        (
            {"terms": (("focal", 1.0, {"denominator": "none"}),)},
            "set config.loss.denom",
        ),
        ({"terms": (("dice", 0.5),)}, r"config\.loss\.terms\[0\] is .*give a name"),
        ({"terms": ("dice",)}, r"config\.loss\.terms\[0\] is 'dice'; give a name"),
        ({"terms": (("dice", float("nan"), {}),)}, r"give a name, a weight"),
        (
            {"terms": (("dice", 1.0, {}),), "label_smoothing": 0.1},
            r"config\.loss\.label_smoothing=0.1, but the loss 'dice' has no",
        ),
        ({"terms": (("dice", 1.0, {}),), "name": "focal"}, "replaces config.loss.name"),
        (
            {"terms": (("cross_entropy", 1.0, {}), ("dice", 1.0, {})), "chunks": 2},
            r"config\.loss\.terms\[1\]: chunks is 2, but the loss is not a sum",
        ),
    ],
)
def test_terms_that_cannot_be(config, changes, message):
    for key, value in changes.items():
        config.loss[key] = value
    with pytest.raises(ConfigError, match=message):
        create_loss(config, None)


def test_errors_of_a_term_name_it(config):
    config.loss.terms = (("cross_entropy", 1.0, {}), ("dice", 1.0, {"per": "all"}))
    with pytest.raises(ConfigError, match=r"config\.loss\.terms\[1\]: per is 'all'"):
        jax.eval_shape(create_loss(config, None), LOGITS, LABEL)


@pytest.mark.parametrize("result", [jnp.ones(()), (jnp.ones(2), jnp.ones(()))])
def test_a_loss_that_returns_something_else_is_refused(config, result):
    jaxseg.register("loss", "wrong")(lambda logits, label: result)
    config.loss.name = "wrong"
    with pytest.raises(ConfigError, match="must return two scalars"):
        jax.eval_shape(create_loss(config, None), LOGITS, LABEL)


def test_errors_of_the_loss_name_its_section(config):
    config.loss.chunks = 4
    with pytest.raises(ConfigError, match=r"config\.loss: chunks .*divide the width 6"):
        jax.eval_shape(create_loss(config, None), LOGITS, LABEL)
