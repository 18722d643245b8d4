"""SegNet against its published counts and against the same network in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from tests.helpers import init_variables


def _count(model, size=(32, 32)):
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
    )
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("segnet", 11, 29_449_355),
        ("segnet", 21, 29_455_125),
        ("segnet", 37, 29_464_357),
        ("segnet_basic", 11, 1_416_587),
    ],
)
def test_parameter_counts(name, num_classes, parameters):
    assert _count(create_model(name, num_classes)) == parameters


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (2, 37, 51, 3), maxval=255.0)


@pytest.fixture(scope="module", params=["segnet", "segnet_basic"])
def trained(request, image):
    """A narrow model with variables, and its name."""
    model = create_model(request.param, 5, width=4, dropout=0.5)
    variables = init_variables(model, image)
    return request.param, model, variables


@pytest.mark.parametrize("size", [(37, 51), (36, 48), (45, 60), (1, 33)])
def test_logits_have_the_size_of_the_image(trained, size):
    _, model, variables = trained
    logits = jax.eval_shape(
        lambda: model.apply(variables, jnp.zeros((1, *size, 3)), train=False)
    )
    assert logits.shape == (1, *size, 5)
    assert logits.dtype == jnp.float32


def _gradients(model, variables, image):
    def loss(params):
        logits, _ = model.apply(
            variables | {"params": params},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return jnp.mean(jnp.square(logits - 1))

    return jax.jit(jax.grad(loss))(variables["params"])


def test_every_parameter_receives_gradient(trained, image):
    name, model, variables = trained
    grads = _gradients(model.clone(), variables, image)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias before BatchNorm is subtracted again with the mean.
        if "conv" not in path or not path.endswith("bias"):
            assert np.any(grad != 0), f"{name}: {path}"


def test_remat_changes_nothing(trained, image):
    name, model, variables = trained
    remat = create_model(name, 5, width=4, dropout=0.5, remat=True)
    for a, b in zip(
        jax.tree.leaves(_gradients(model, variables, image)),
        jax.tree.leaves(_gradients(remat, variables, image)),
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters(trained, image):
    name, model, variables = trained
    half = create_model(name, 5, width=4, dropout=0.5, dtype="bfloat16")

    def train(model):
        return model.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    exact, _ = jax.jit(train, static_argnums=0)(model)
    rounded, changed = jax.jit(train, static_argnums=0)(half)
    assert rounded.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(changed))
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    # Eight bits of mantissa through ten stages; maxima that swap places add to it.
    assert 1e-3 < error < 0.5
    assert _count(half) == _count(model)


def test_bfloat16_sums_the_gradient_of_a_bias_in_float32():
    """A sum over 19,200 pixels in eight bits of mantissa would lose most of itself."""
    image = jax.random.normal(jax.random.key(1), (4, 60, 80, 3))

    def gradient(dtype):
        model = create_model("segnet", 5, width=4, depths=(1,), dtype=dtype)
        variables = init_variables(model, image)

        def loss(params):
            logits = model.apply(variables | {"params": params}, image, train=False)
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

        return jax.jit(jax.grad(loss))(variables["params"])["head"]["bias"]

    exact, rounded = gradient("float32"), gradient("bfloat16")
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert error < 0.02


def test_dropout_is_off_outside_training_and_random_within(trained, image):
    _, model, variables = trained

    @jax.jit
    def train(key):
        return model.apply(
            variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    assert not np.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
    np.testing.assert_array_equal(train(jax.random.key(0)), train(jax.random.key(0)))
    plain = create_model(trained[0], 5, width=4)
    np.testing.assert_array_equal(
        jax.jit(lambda: model.apply(variables, image, train=False))(),
        jax.jit(lambda: plain.apply(variables, image, train=False))(),
    )


def test_equals_segnet_in_pytorch(image):
    """The same weights in a network written after the paper, odd sizes and all."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = create_model("segnet", 5, width=4)
    variables = init_variables(model, image)
    params = jax.tree.map(np.asarray, variables["params"])

    def convolve(x, layer):
        kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1))
        return functional.conv2d(x, kernel, torch.tensor(layer["bias"]), padding="same")

    def stage(x, block):
        for i in range(1, len(block) // 2 + 1):
            bn = block[f"bn{i}"]
            x = convolve(x, block[f"conv{i}"])
            x = functional.batch_norm(
                x,
                None,
                None,
                torch.tensor(bn["scale"]),
                torch.tensor(bn["bias"]),
                training=True,
            )
            x = functional.relu(x)
        return x

    x = torch.tensor(np.asarray(image).transpose(0, 3, 1, 2))
    indices, sizes = [], []
    for i in range(1, 6):
        x = stage(x, params["encoder"][f"stage{i}"])
        sizes.append(x.shape[2:])
        x, index = functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        indices.append(index)
    for i in range(5):
        # MaxUnpool2d refuses sizes that ceil mode makes, so scatter by hand.
        size, index = sizes.pop(), indices.pop()
        flat = torch.zeros(*x.shape[:2], size[0] * size[1])
        flat.scatter_(2, index.flatten(2), x.flatten(2))
        x = stage(flat.unflatten(2, size), params["decoder"][f"blocks_{i}"])
    x = convolve(x, params["head"])

    logits, _ = jax.jit(
        lambda: model.apply(variables, image, train=True, mutable=["batch_stats"])
    )()
    np.testing.assert_allclose(
        logits, x.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-3
    )


def test_segnet_basic_normalizes_the_raw_image_and_has_no_relu_going_up(image):
    model = create_model("segnet_basic", 5, width=4)
    variables = init_variables(model, image)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    # LRN of 0..255 is far from linear: doubling the image does not double its logits'
    # distance from those of black.
    black = apply(0 * image)
    ratio = jnp.linalg.norm(apply(image) - black) / jnp.linalg.norm(
        apply(image / 2) - black
    )
    assert ratio < 1.9

    def decoded(module, x, **kwargs):
        del kwargs
        return module.decoder(module.encoder(x, train=False), train=False)

    features = jax.jit(
        lambda: model.apply(variables, image, train=False, method=decoded)
    )()
    assert np.any(features < 0)


def test_unpooling_behind_the_wrong_encoder_is_refused():
    from jaxseg.models.upsamplers import Unpool

    x = jnp.zeros((1, 2, 2, 4))
    with pytest.raises(ValueError, match="max-pools at every level"):
        Unpool().apply({}, x, None, (4, 4))
    with pytest.raises(ValueError, match="4 channels at a level of 8"):
        Unpool().apply({}, x, jnp.zeros((1, 2, 2, 8), jnp.uint8), (4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segnat", 11), "did you mean 'segnet'"),
        (("segnet", 0), "at least 1 class"),
    ],
)
def test_unknown_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(*arguments)


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        create_model("segnet", 11, dropuot=0.5)
