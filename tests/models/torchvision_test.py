"""torchvision's segmentation models: the same weights, the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from jaxseg.models.outputs import apply_in_training
from jaxseg.weights.torchvision import mappings
from tests.helpers import init_variables


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_equals_torchvision(torchvision, assert_equals_torch, name):
    reference = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    _, with_auxiliary, _ = mappings({"name": name, "encoder": "resnet50"})
    model = create_model(name, 5, **with_auxiliary.kwargs)
    assert_equals_torch(
        model, reference, with_auxiliary, 65, output=lambda logits: logits["out"]
    )


def test_auxiliary_head_stands_behind_the_third_stage():
    model = create_model(
        "fcn_resnet50",
        5,
        aux_weight=0.4,
        encoder_kwargs=dict(width=4, depths=(1, 1, 1, 1)),
    )
    image = jax.random.normal(jax.random.key(0), (2, 33, 47, 3))
    variables = init_variables(model, image, seed=1)

    def auxiliary(variables):
        key = jax.random.key(2)
        ((weight, logits),) = apply_in_training(model, variables, image, key).auxiliary
        return jnp.sum(jnp.square(logits)), weight

    grads, weight = jax.jit(jax.grad(auxiliary, has_aux=True))(variables)
    assert weight == np.float32(0.4)
    grads = grads["params"]["encoder"]
    assert np.any(grads["stage3"]["block1"]["conv1"]["kernel"] != 0)
    assert not np.any(grads["stage4"]["block1"]["conv1"]["kernel"] != 0)
    logits = jax.eval_shape(lambda: model.apply(variables, image, train=False))
    assert logits.shape == (2, 33, 47, 5)
