from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.classifier import Classifier, PooledHead
from jaxseg.models.encoders import ENCODERS
from jaxseg.models.layers import ConvTranspose, batch_norm
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights.folding import fold_batch_norm
from jaxseg.weights.mapping import WeightsError


def _random(model, shape):
    """Variables of which none is at its neutral start."""
    like = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.normal(size=leaf.shape)
        if path.endswith("kernel"):
            x *= np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1))
        elif path.endswith(("scale", "var")):
            x = rng.uniform(0.5, 1.5, leaf.shape)
        return x.astype(np.float32)

    return unflatten({p: draw(p, leaf) for p, leaf in flatten(like).items()})


NETS = {
    "vgg16_bn": dict(widths=(4, 4, 4, 4, 4)),
    "resnet18": dict(width=4),
    "mobilenet_v2": dict(widths=(4, 4, 4, 4, 4, 4, 4, 4, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_folded_net_gives_the_same_without_statistics(name):
    model = Classifier(ENCODERS[name](**NETS[name]), PooledHead(5))
    variables = _random(model, (32, 32, 3))
    folded = fold_batch_norm(model, variables, (32, 32, 3))
    image = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(partial(model.apply, train=False))
    expected = apply(variables, image)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(apply(folded, image), expected, atol=2e-5 * scale)
    for path, leaf in flatten(folded).items():
        if "batch_stats" in path:
            assert np.all(
                leaf == (0 if path.endswith("mean") else np.float32(1 - 1e-5))
            )
        if path.endswith("scale"):
            assert np.all(leaf == 1)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(folded), strict=True):
        assert a.dtype == b.dtype


class _Pair(nn.Module):
    """A layer and a BatchNorm in the ways that they can meet."""

    way: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            epsilon=0.25,
            use_scale=self.way != "without a scale",
            name="norm",
        )
        layer = nn.Dense(2, use_bias=self.use_bias, name="layer")
        if self.way == "norm first":
            return layer(norm()(x))
        y = layer(x)
        if self.way == "activation between":
            return norm()(nn.relu(y))
        if self.way == "seen elsewhere":
            return y + norm()(y)
        if self.way == "twice":
            return norm()(layer(nn.relu(y)))
        return norm()(y)


@pytest.mark.parametrize("use_bias", [True, False])
def test_folding_by_hand(use_bias):
    """g = 3 / sqrt(0.75 + 0.25) = 3 on the first channel, 1 / sqrt(4) on the second."""
    model = _Pair("plain", use_bias)
    layer = {"kernel": np.array([[1.0, 2.0]], np.float32)}
    if use_bias:
        layer["bias"] = np.array([10.0, 20.0], np.float32)
    variables = {
        "params": {
            "layer": layer,
            "norm": {
                "scale": np.array([3.0, 1.0], np.float32),
                "bias": np.array([0.5, 0.0], np.float32),
            },
        },
        "batch_stats": {
            "norm": {
                "mean": np.array([1.0, 4.0], np.float32),
                "var": np.array([0.75, 3.75], np.float32),
            }
        },
    }
    folded = fold_batch_norm(model, variables, (4, 4, 1))["params"]
    np.testing.assert_allclose(folded["layer"]["kernel"], [[3.0, 1.0]])
    # d = 0.5 - 3 * 1 and 0 - 0.5 * 4
    if use_bias:
        np.testing.assert_allclose(folded["layer"]["bias"], [27.5, 8.0])
        np.testing.assert_allclose(folded["norm"]["bias"], [0, 0])
    else:
        np.testing.assert_allclose(folded["norm"]["bias"], [-2.5, -2.0])


@pytest.mark.parametrize(
    "way",
    ["norm first", "activation between", "seen elsewhere", "twice", "without a scale"],
)
def test_what_cannot_be_folded_is_refused(way):
    model = _Pair(way)
    shape = (4, 4, 2)
    with pytest.raises(WeightsError, match=r"cannot be folded.*: norm"):
        fold_batch_norm(model, _random(model, shape), shape)


def test_transposed_and_rematerialized_layers_are_folded():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            block = ConvBlock((3,), conv=ConvTranspose, norm=batch_norm, name="block")
            return nn.remat(lambda block, x: block(x, train=train))(block, x)

    model, shape = Net(), (6, 6, 2)
    variables = _random(model, shape)
    folded = fold_batch_norm(model, variables, shape)
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    before, after = (model.apply(v, image, train=False) for v in (variables, folded))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.all(folded["batch_stats"]["block"]["bn1"]["mean"] == 0)
