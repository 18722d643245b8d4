"""What a config means: its losses, and what changed since the last start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.losses import cross_entropy
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
