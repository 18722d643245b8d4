from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.models import create_model
from jaxseg.models.classifier import DenseHead, create_classifier
from jaxseg.models.heads import DenseAsConvolutions, Scores
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights import surgery
from jaxseg.weights.mapping import WeightsError


def test_dense_layer_as_convolution_keeps_each_cell():
    # Two units over a 2x2 map of 3 channels; entry = 100 unit + 10 channel + cell.
    kernel = np.array(
        [
            [100 * unit + 10 * c + cell for c in range(3) for cell in range(4)]
            for unit in range(2)
        ]
    )
    conv = surgery.dense_to_conv(kernel, 2)
    assert conv.shape == (2, 2, 3, 2)
    assert conv[0, 1, 2, 1] == 121  # first row, second column: cell 1
    assert conv[1, 0, 1, 0] == 12
    # Channels last: the first cell's three channels come first.
    dense = surgery.dense_from_chw(kernel, 2)
    np.testing.assert_array_equal(dense[:4, 0], [0, 10, 20, 1])


def test_dense_layer_on_units_is_a_1x1_convolution():
    kernel = np.arange(6).reshape(2, 3)
    conv = surgery.dense_to_conv(kernel, 1)
    np.testing.assert_array_equal(conv, kernel.T.reshape(1, 1, 3, 2))
    np.testing.assert_array_equal(surgery.dense_from_chw(kernel, 1), kernel.T)


def test_dense_layer_of_another_map_is_refused():
    with pytest.raises(WeightsError, match="7x7"):
        surgery.dense_to_conv(np.zeros((4, 100)), 7)


def test_subsampling_takes_the_outer_and_middle_taps_and_every_fourth_unit():
    kernel = np.arange(7 * 7 * 2 * 8).reshape(7, 7, 2, 8)
    small = surgery.subsample_dense(kernel, (3, 3, 2, 2))
    np.testing.assert_array_equal(small, kernel[::3, ::3, :, ::4])
    small = surgery.subsample_dense(kernel, (4, 4, 2, 8))
    np.testing.assert_array_equal(small, kernel[::2, ::2])
    # The bias and the next layer's kernel keep the same units.
    bias = np.arange(8)
    np.testing.assert_array_equal(surgery.subsample_dense(bias, (2,)), [0, 4])
    after = np.arange(64).reshape(1, 1, 8, 8)
    np.testing.assert_array_equal(
        surgery.subsample_dense(after, (1, 1, 2, 2)), after[:, :, ::4, ::4]
    )


def test_subsampling_to_more_is_refused():
    with pytest.raises(WeightsError, match="cannot be subsampled"):
        surgery.subsample_dense(np.zeros((3, 3, 2, 8)), (7, 7, 2, 8))


NETS = {  # encoder's arguments, size of the classifier's image, side of its map
    "alexnet": (dict(widths=(4, 4, 4, 4, 6)), 227, 6),
    "vgg16": (dict(widths=(2, 2, 3, 3, 4)), 224, 7),
    "googlenet": (dict(width=8), 224, 7),
}


def _classifier(name, **parts):
    """The published geometry, few channels."""
    model = create_classifier(name, 5, **NETS[name][0], **parts)
    if isinstance(model.head, DenseHead):
        model = model.clone(head=model.head.clone(hidden=(8, 8)))
    return model


def _like(model, size):
    return jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
        )
    )


def _random(model, size):
    """Variables whose biases are not zero either."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (
            rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        ).astype(np.float32),
        _like(model, size),
    )


def _image(size):
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def _scores(variables, features, side):
    """What stands on the encoder of a fully convolutional net, unpadded."""
    block = None
    if "block" in variables["params"]["neck"]:
        block = DenseAsConvolutions(side, (8, 8), padding="VALID")
    return Scores(5, block).apply(
        {"params": variables["params"]["neck"]}, features, train=False
    )


@pytest.mark.parametrize("name", NETS)
def test_convolutional_net_equals_the_classifier(name):
    """On its own size; and on a larger one, where its head is slid over the map."""
    _, size, side = NETS[name]
    model = _classifier(name)
    variables = _random(model, size)
    conv = surgery.convolutionalize(variables, side)
    parts = dict(encoder=name, encoder_kwargs=NETS[name][0])
    parts |= {} if name == "googlenet" else {"hidden": 8}
    assert _shapes(conv) == _shapes(_like(create_model("fcn32s", 5, **parts), 64))

    def scores(features):
        y = _scores(conv, features, side)
        # GoogLeNet's mean over the map comes before its dense layer or after it.
        return nn.avg_pool(y, (7, 7)) if name == "googlenet" else y

    @jax.jit
    def classify(image):
        logits, inside = model.apply(
            variables,
            image,
            train=False,
            capture_intermediates=lambda module, _: module.name == "encoder",
            mutable=["intermediates"],
        )
        return logits, inside["intermediates"]["encoder"]["__call__"][0].maps[-1]

    logits, features = classify(_image(size))
    own = scores(features)
    assert own.shape == (2, 1, 1, 5)
    np.testing.assert_allclose(own[:, 0, 0], logits, rtol=1e-4, atol=1e-5)

    # The encoder is the same on both sides, so that any map stands for an image's.
    shape = (2, side + 1, side + 2, features.shape[-1])
    features = np.random.default_rng(2).uniform(size=shape).astype(np.float32)
    slid = scores(features)
    assert slid.shape == (2, 2, 3, 5)
    head = {"params": variables["params"]["head"]}
    for i, j in np.ndindex(2, 3):
        window = features[:, i : i + side, j : j + side]
        logits = model.head.apply(head, window, train=False)
        np.testing.assert_allclose(slid[:, i, j], logits, rtol=1e-4, atol=1e-5)


def test_unpadded_net_equals_the_classifier_slid_over_the_image():
    """Every place of a 318 pixels wide image against the crop of 286 that begins there.

    286 pixels are what five unpadded 3x3 convolutions and poolings make 7x7 cells of.
    """
    model = _classifier("vgg16", padding="VALID", depths=(1, 1, 1, 1, 1))
    variables = _random(model, 286)
    conv = surgery.convolutionalize(variables)
    image = _image(318)[:1]
    encode = jax.jit(partial(model.encoder.apply, train=False))
    features = encode({"params": conv["params"]["encoder"]}, image)
    slid = _scores(conv, features.maps[-1], 7)
    assert slid.shape == (1, 2, 2, 5)
    classify = jax.jit(partial(model.apply, train=False))
    for i, j in np.ndindex(2, 2):
        crop = image[:, 32 * i : 32 * i + 286, 32 * j : 32 * j + 286]
        logits = classify(variables, crop)
        np.testing.assert_allclose(slid[:, i, j], logits, rtol=1e-4, atol=1e-5)


def test_heads_that_are_no_convolutions_are_refused():
    layers = {"norm": {"scale": 1.0}, "fc": {"kernel": np.zeros((4, 5))}}
    with pytest.raises(WeightsError, match="norm"):
        surgery.convolutionalize({"params": {"head": layers}})
    layers = {"fc6": {"kernel": np.zeros((36, 5))}, "fc7": {"kernel": np.zeros((5, 5))}}
    with pytest.raises(WeightsError, match="7x7"):
        surgery.convolutionalize({"params": {"head": layers}}, 7)


def _shapes(variables):
    return {path: tuple(leaf.shape) for path, leaf in flatten(variables).items()}


def _convolve(image, kernel):
    return jnp.einsum("hwc,hwco->o", image, kernel)


@pytest.mark.parametrize("how,channels", [("mean", 1), ("mean", 5), ("repeat", 5)])
def test_gray_images_give_the_same_by_any_number_of_channels(how, channels):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    gray = rng.normal(size=(3, 3, 1)).astype(np.float32)
    new = surgery.adapt_input(kernel, channels, how)
    assert new.shape == (3, 3, channels, 4) and new.dtype == np.float32
    np.testing.assert_allclose(
        _convolve(gray.repeat(channels, 2), new),
        _convolve(gray.repeat(3, 2), kernel),
        rtol=1e-4,
        atol=1e-5,
    )


def test_repeated_channels_share_what_there_was():
    kernel = np.array([1.0, 2.0, 3.0], np.float32).reshape(1, 1, 3, 1)
    new = surgery.adapt_input(kernel, 4, "repeat")
    np.testing.assert_array_equal(new.ravel(), [0.5, 2, 3, 0.5])
    new = surgery.adapt_input(kernel, 2, "mean")
    np.testing.assert_array_equal(new.ravel(), [3, 3])


def test_zero_for_new_channels_leaves_the_old_ones_alone():
    kernel = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    new = surgery.adapt_input(kernel, 4, "zero")
    np.testing.assert_array_equal(new[:, :, :3], kernel)
    np.testing.assert_array_equal(new[:, :, 3], 0)


def test_inputs_that_cannot_be_made_are_refused():
    kernel = np.zeros((3, 3, 3, 4))
    for how in ("repeat", "zero"):
        with pytest.raises(WeightsError, match='use "mean"'):
            surgery.adapt_input(kernel, 1, how)
    with pytest.raises(WeightsError, match='"mean", "repeat" or "zero"'):
        surgery.adapt_input(kernel, 4, "median")


def _fcn(name, num_classes=3):
    encoder = dict(widths=(2, 2, 2, 2, 4), depths=(1, 1, 1, 1, 1))
    return create_model(
        name, num_classes, learned=True, hidden=4, encoder_kwargs=encoder
    )


def _zeros(model):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _like(model, 64))


def test_each_stage_takes_over_all_of_the_one_before():
    coarse, fine = _random(_fcn("fcn32s"), 64), _zeros(_fcn("fcn16s"))
    variables, new, dropped = surgery.transfer(coarse, fine)
    assert new == (
        "params/decoder/skips_0/project/bias",
        "params/decoder/skips_0/project/kernel",
        "params/decoder/upsamplers_0/conv/kernel",
    )
    assert dropped == ()
    got, before, fresh = (flatten(tree) for tree in (variables, coarse, fine))
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, (fresh if path in new else before)[path])
    # Back again, what the coarser net has no place for is named.
    assert surgery.transfer(variables, coarse).dropped == new


def test_a_new_head_for_other_classes():
    old, like = _random(_fcn("fcn32s"), 64), _zeros(_fcn("fcn32s", 7))
    with pytest.raises(WeightsError, match=r"score/kernel is \(1, 1, 4, 3\), but"):
        surgery.transfer(old, like)
    variables, new, dropped = surgery.transfer(old, like, ("params/neck/score/*",))
    assert new == dropped == ("params/neck/score/bias", "params/neck/score/kernel")
    score = variables["params"]["neck"]["score"]
    np.testing.assert_array_equal(score["kernel"], np.zeros((1, 1, 4, 7)))
    with pytest.raises(WeightsError, match=r"'params/head/.' matches no path"):
        surgery.transfer(old, like, ("params/head/*",))


def test_bilinear_start_interpolates():
    variables = _random(_fcn("fcn16s"), 64)
    glob = "params/decoder/upsamplers_*/conv/kernel"
    before = flatten(variables)
    started = surgery.bilinear_start(variables, {glob: 2}, jax.random.key(0))
    for path, leaf in flatten(started).items():
        if "upsamplers" not in path:
            np.testing.assert_array_equal(leaf, before[path])
            continue
        w = np.array([0.25, 0.75, 0.75, 0.25])
        expected = np.einsum("i,j,cd->ijcd", w, w, np.eye(3))
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


def test_fcn_with_fc6_and_fc7_at_zero_is_dead_and_with_zero_scores_is_not():
    """Why only scores may start from zero.

    With w6 = w7 = 0 and no biases, h6 = relu(0) and h7 = relu(0) are zero, and relu'(0)
    is zero. So d loss / d w_score = h7 * ... = 0, what comes down to w7 and w6 stops at
    relu', and nothing ever moves but the score's bias, which sees no image. With the
    scores' kernel alone at zero, h7 is not zero: it moves at the first step, and at the
    second lets gradient through to all that is before it.
    """
    model = _fcn("fcn32s")
    image = _image(64)
    label = np.random.default_rng(2).integers(0, 3, (2, 64, 64))

    @jax.jit
    def step(params):
        """The gradient, and where it leads to."""

        def loss(params):
            logits = model.apply({"params": params}, image, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        gradient = jax.grad(loss)(params)
        return gradient, jax.tree.map(lambda p, g: p - g, params, gradient)

    def moving(params, steps):
        """The leaves that have gradient after some steps."""
        for _ in range(steps):
            _, params = step(params)
        leaves = flatten(step(params)[0])
        return {path for path, leaf in leaves.items() if np.any(leaf != 0)}

    zeros = jnp.zeros((1, 64, 64, 3))
    start = jax.jit(partial(model.init, train=False))(jax.random.key(0), zeros)
    start = start["params"]
    score = {"neck/score/kernel", "neck/score/bias"}
    assert moving(start, 0) == score
    assert moving(start, 1) == flatten(start).keys()

    for kernel in (start["neck"]["score"]["kernel"], np.ones((1, 1, 4, 3), np.float32)):
        dead = flatten(start) | {
            "neck/block/fc6/kernel": np.zeros((7, 7, 4, 4), np.float32),
            "neck/block/fc7/kernel": np.zeros((1, 1, 4, 4), np.float32),
            "neck/score/kernel": kernel,
        }
        for steps in (0, 3):
            assert moving(unflatten(dead), steps) == {"neck/score/bias"}
