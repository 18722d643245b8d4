"""torchvision's segmentation models: the same weights, the same logits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model

LAYERS = {"0": "conv1", "1": "bn1"}


def _rename_encoder(name):
    names = {"conv1": "encoder/stem/conv", "bn1": "encoder/stem/bn"}
    if name in names:
        return names[name]
    stage, block, layer = re.fullmatch(r"layer(.)\.(\d+)\.(.+)", name).groups()
    layer = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_bn"}.get(
        layer, layer
    )
    return f"encoder/stage{stage}/block{int(block) + 1}/{layer}"


def _rename_fcn(prefix, head, name):
    return head if name == "4" else f"{prefix}/{LAYERS[name]}"


def _rename_aspp(name):
    parts = name.split(".")
    if parts[0] == "4":
        return "head"
    if parts[0] in ("1", "2"):
        return "neck/parts_1/" + {"1": "conv1", "2": "bn1"}[parts[0]]
    if parts[1] == "project":
        return f"neck/parts_0/project/{LAYERS[parts[2]]}"
    branch = ("point", "atrous1", "atrous2", "atrous3", "pooled")[int(parts[2])]
    # The pooling branch begins with a pooling.
    layer = int(parts[3]) - (branch == "pooled")
    return f"neck/parts_0/{branch}/{LAYERS[str(layer)]}"


def _rename(model, name):
    where, _, name = name.removeprefix("net.").partition(".")
    if where == "backbone":
        return _rename_encoder(name)
    if where == "aux_classifier":
        return _rename_fcn("auxiliary_0/block", "auxiliary_0/head", name)
    if model == "deeplabv3_resnet50":
        return _rename_aspp(name)
    return _rename_fcn("neck", "head", name)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_equals_torchvision(torchvision, assert_equals_torch, name):
    import torch

    class Out(torch.nn.Module):
        """Gives what assert_equals_torch compares, and names modules by the model."""

        def __init__(self):
            super().__init__()
            self.net = getattr(torchvision.models.segmentation, name)(
                weights=None, weights_backbone=None, num_classes=5, aux_loss=True
            )

        def forward(self, x):
            return self.net(x)["out"].permute(0, 2, 3, 1)

    model = create_model(name, 5, aux_weight=0.5)
    assert_equals_torch(model, Out(), partial(_rename, name), 65)


def test_auxiliary_head_stands_behind_the_third_stage():
    model = create_model(
        "fcn_resnet50",
        5,
        aux_weight=0.4,
        encoder_parts=dict(width=4, depths=(1, 1, 1, 1)),
    )
    image = jax.random.normal(jax.random.key(0), (2, 33, 47, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), image, train=False))()

    @jax.jit
    def run():
        output, _ = model.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        grad = jax.grad(
            lambda v: jnp.sum(
                model.apply(
                    v,
                    image,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(2)},
                )[0]["aux"][0][1]
                ** 2
            )
        )(variables)["params"]["encoder"]
        return output, grad

    output, grads = run()
    assert output["aux"][0][0] == np.float32(0.4)
    assert np.any(grads["stage3"]["block1"]["conv1"]["kernel"] != 0)
    assert not np.any(grads["stage4"]["block1"]["conv1"]["kernel"] != 0)
    logits = jax.eval_shape(lambda: model.apply(variables, image, train=False))
    assert logits.shape == (2, 33, 47, 5)
