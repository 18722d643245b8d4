"""Layer options: their forms, and what is done with them for models of any kind."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from jaxseg.models import create_model
from jaxseg.models.blocks import ConvBlock
from jaxseg.models.options import LayerOptions
from jaxseg.models.registry import MODELS


def test_a_type_and_its_name_are_the_same():
    named, typed = LayerOptions("bfloat16"), LayerOptions(jnp.bfloat16)
    assert named == typed and hash(named) == hash(typed)
    blocks = [ConvBlock((3,), options=options) for options in (named, typed)]
    assert blocks[0] == blocks[1] and hash(blocks[0]) == hash(blocks[1])
    assert blocks[0].clone(features=(4,)).options.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["int32", "half a float", None, jnp.uint8])
def test_only_floating_types_are_accepted(dtype):
    with pytest.raises(ValueError, match=r"param_dtype=.* not a floating type"):
        LayerOptions(param_dtype=dtype)


class Simple(nn.Module):
    """A model from outside the package, without options."""

    num_classes: int
    logits_dtype: jnp.dtype = jnp.float32


def test_options_without_effect_are_refused(monkeypatch):
    monkeypatch.setitem(MODELS, "simple", Simple)
    assert create_model("simple", 3).num_classes == 3
    with pytest.raises(ValueError, match=r"no effect: .*axis_name='batch'"):
        create_model("simple", 3, axis_name="batch")


@pytest.mark.parametrize("key", ["remta", "widht", "options"])
def test_unknown_arguments_are_refused(key):
    with pytest.raises(ValueError, match=f"unet has no argument '{key}'"):
        create_model("unet", 3, **{key: None})
