"""What every named model must do: sizes, gradients, precision, memory, both modes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model, list_models
from jaxseg.models.outputs import apply_in_training
from jaxseg.models.unet import valid_size

VGG = dict(widths=(4, 4, 4, 4, 4), depths=(1, 1, 1, 1, 1))
RESNET = dict(width=4, depths=(1, 1, 1, 1))
FCN = dict(encoder_kwargs=VGG, hidden=8, dropout=0.0)
DILATED = dict(encoder_kwargs=RESNET, multi_grid=(2,), width=4, dropout=0.0)
NARROW = {
    "bilinear_interpolation": dict(width=4),
    "deconvnet": dict(width=4, hidden=8),
    "deeplab_largefov": dict(width=4, hidden=8, dropout=0.0),
    "deeplab_v2": dict(encoder_kwargs=RESNET),
    "deeplab_v3": DILATED,
    "deeplab_v3plus": DILATED | dict(low_level=4),
    "deeplabv3_resnet50": dict(encoder_kwargs=RESNET, width=4, aux_weight=0.5),
    "encoder_decoder": dict(encoder_kwargs=VGG, depth=1),
    "fc_resnet": dict(width=4, depths=(1, 1), init_blocks=1, dropout=0.0),
    "fcn16s": FCN,
    "fcn32s": FCN,
    "fcn8s": FCN | dict(learned=True),
    "fcn8s_atonce": FCN | dict(geometry="released"),
    "fcn_basic": dict(width=4),
    "fcn_basic_no_addition": dict(width=4),
    "fcn_basic_no_addition_no_dim_reduction": dict(width=4),
    "fcn_basic_no_dim_reduction": dict(width=4),
    "fcn_resnet50": dict(encoder_kwargs=RESNET, aux_weight=0.5),
    "segnet": dict(width=4, depths=(1, 1, 1)),
    "segnet_basic": dict(width=4),
    "segnet_basic_encoder_addition": dict(width=4),
    "segnet_basic_single_channel": dict(width=4),
    "unet": dict(width=4, levels=3, dropout=0.0),
    "unet_valid": dict(width=4, levels=3, dropout=0.0),
}
LEAST = {"deconvnet": (225, 233), "unet_valid": (44, 52)}
# Dropout that cannot be turned off by a part makes training differ from inference.
NOISY = ("deeplabv3_resnet50", "fcn_resnet50")


def test_every_model_is_tested():
    assert NARROW.keys() == set(list_models())


def _build(name, **fields):
    return create_model(name, 5, **NARROW[name] | fields)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("size", [(33, 47), (64, 96), (50, 35)])
def test_logits_have_the_size_of_the_image(name, size):
    expected = size
    if name == "deconvnet":
        size = expected = tuple(n + 160 for n in size)
    if name == "unet_valid":
        size, expected = zip(*(valid_size(n, levels=3) for n in size))
    image = jnp.zeros((2, *size, 3))
    model = _build(name, dtype="bfloat16")
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)
    )
    assert logits.shape == (2, *expected, 5) and logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NARROW)
def test_options_reach_every_layer(name):
    model = _build(name, dtype="bfloat16", param_dtype="float16", axis_name="batch")
    wrong = set()

    def check(call, args, kwargs, context):
        layer, path = context.module, "/".join(context.module.path)
        for field, expected in (
            ("dtype", jnp.bfloat16),
            ("param_dtype", jnp.float16),
            ("axis_name", "batch"),
        ):
            if getattr(layer, field, expected) != expected:
                wrong.add(f"{path}.{field}")
        return call(*args, **kwargs)

    image = jnp.zeros((1, *LEAST.get(name, (33, 47)), 3))
    with nn.intercept_methods(check):
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    upsamples_in_float32 = name in ("fcn8s", "fcn8s_atonce", "fcn16s", "fcn32s")
    assert wrong == ({"head.dtype"} if upsamples_in_float32 else set())


@pytest.fixture(scope="module", params=NARROW)
def narrow(request, random_variables):
    """A model's name, variables, image, training step and logits for inference."""
    name = request.param
    size = LEAST.get(name, (33, 47))
    image = jax.random.uniform(jax.random.key(1), (2, *size, 3), maxval=255.0)
    model = _build(name)
    variables = random_variables(model, image)

    @jax.jit
    def step(variables, image):
        def loss(params):
            output = apply_in_training(
                model, variables | {"params": params}, image, jax.random.key(2)
            )
            maps = [output.logits, *(logits for _, logits in output.auxiliary)]
            return sum(jnp.mean(jnp.square(x - 1)) for x in maps), output

        return jax.grad(loss, has_aux=True)(variables["params"])

    evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False))
    return name, variables, image, step(variables, image), evaluate


def test_every_parameter_receives_gradient(narrow):
    name, _, _, (grads, _), _ = narrow
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.all(np.isfinite(grad)), f"{name}: {path}"
        block = path.split("/")[:-2]
        normed = path.endswith("bias") and _has_norm(grads, block, path)
        # A bias before BatchNorm is subtracted again with the mean.
        assert normed or np.any(grad != 0), f"{name}: {path}"


def _has_norm(tree, block, path):
    for key in block:
        tree = tree[key]
    conv = path.split("/")[-2]
    return conv.replace("conv", "bn") in tree and conv.startswith("conv")


def test_auxiliary_logits_are_those_of_the_auxiliary_heads(narrow):
    name, _, image, (_, output), _ = narrow
    if "aux_weight" not in NARROW[name]:
        assert output.auxiliary == ()
        return
    ((weight, logits),) = output.auxiliary
    assert weight == 0.5
    assert logits.shape == output.logits.shape == (2, *image.shape[1:3], 5)


def test_inference_agrees_with_training(narrow):
    """With the batch's own statistics in the place of the running averages."""
    name, variables, image, (_, output), evaluate = narrow
    if name in NOISY:
        pytest.skip("has dropout")
    if output.batch_stats:
        momentum = 0.9
        stats = jax.tree.map(
            lambda after, before: (after - momentum * before) / (1 - momentum),
            output.batch_stats,
            variables["batch_stats"],
        )
        variables = variables | {"batch_stats": stats}
    logits = evaluate(variables, image)
    error = jnp.linalg.norm(logits - output.logits) / jnp.linalg.norm(output.logits)
    assert error < 1e-2


def test_bfloat16_stays_near_float32(narrow):
    name, variables, image, _, evaluate = narrow
    exact = evaluate(variables, image)
    model = _build(name, dtype="bfloat16")
    rounded = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact)
    # Eight bits of mantissa; maxima that swap places add to it, and of those
    # DeconvNet has five poolings' behind each other.
    assert 1e-4 < error < (0.8 if name == "deconvnet" else 0.3)


@pytest.mark.parametrize("name", NARROW)
def test_remat_covers_the_network(name):
    """With it, no convolution but the head's is outside what is computed again."""
    image = jnp.zeros((1, *LEAST.get(name, (33, 47)), 3))

    def convolutions(remat):
        model = _build(name, remat=remat)
        variables = jax.eval_shape(
            lambda: model.init(jax.random.key(0), image, train=False)
        )
        jaxpr = jax.make_jaxpr(lambda v: model.apply(v, image, train=False))(variables)
        return sum(eqn.primitive.name == "conv_general_dilated" for eqn in jaxpr.eqns)

    # FC-ResNet's first convolution and those of its long skips stay outside as well.
    allowed = 4 if name == "fc_resnet" else 1
    assert convolutions(remat=False) > allowed
    assert convolutions(remat=True) <= allowed
