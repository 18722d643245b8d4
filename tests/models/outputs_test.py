"""Training outputs: of models with auxiliary heads, without, and of any linen module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from jaxseg.models.outputs import apply_in_training
from jaxseg.utils import registry
from tests.helpers import init_variables

KEY = jax.random.key(2)


class Plain(nn.Module):
    """A model from outside the package, which returns logits and nothing else."""

    norm: bool

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(3, (1, 1))(image)
        return nn.BatchNorm(use_running_average=not train)(x) if self.norm else x


@pytest.fixture
def image():
    return jax.random.normal(jax.random.key(0), (2, 33, 47, 3))


@pytest.mark.parametrize("norm", [True, False])
def test_any_linen_module_can_be_trained(image, norm):
    model = Plain(norm)
    variables = init_variables(model, image, seed=1)
    output = apply_in_training(model, variables, image, KEY)
    logits, changed = model.apply(variables, image, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(output.logits, logits)
    assert output.auxiliary == ()
    jax.tree.map(
        np.testing.assert_array_equal,
        output.batch_stats,
        changed.get("batch_stats", {}),
    )


def test_a_call_returns_the_logits_alone_and_init_makes_all_parameters(image):
    model = create_model(
        "fcn_resnet50",
        5,
        aux_weight=0.4,
        encoder_kwargs=dict(width=4, depths=(1, 1, 1, 1)),
    )
    variables = init_variables(model, image, seed=1)
    assert "auxiliary_0" in variables["params"]

    @jax.jit
    def both(variables):
        logits, _ = model.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return logits, apply_in_training(model, variables, image, KEY)

    logits, output = both(variables)
    assert isinstance(logits, jax.Array)
    np.testing.assert_array_equal(logits, output.logits)
    ((_, auxiliary),) = output.auxiliary
    assert auxiliary.shape == logits.shape
    # The statistics of the auxiliary head's BatchNorm move too.
    before, after = (
        stats["auxiliary_0"]["block"]["bn1"]["mean"]
        for stats in (variables["batch_stats"], output.batch_stats)
    )
    assert jnp.any(before != after)


def test_a_plain_module_is_a_model_and_keeps_float32(monkeypatch):
    class Plain(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, image, *, train):
            del train
            return nn.Conv(self.num_classes, (1, 1))(image)

    tables = registry._REGISTERED | {"model": {"plain": Plain}}
    monkeypatch.setattr(registry, "_REGISTERED", tables)
    model = create_model("plain", 3)
    assert isinstance(model, Plain) and model.num_classes == 3
    with pytest.raises(ValueError, match="Plain has no attribute logits_dtype"):
        create_model("plain", 3, logits_dtype="bfloat16")
