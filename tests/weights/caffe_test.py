"""Caffe's names and shapes, typed from the prototxts, against our models' variables."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.models.classifier import create_classifier
from jaxseg.models.layers import ConvTranspose, batch_norm
from jaxseg.ops.convolution import bilinear_kernel
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights.caffe import mappings
from jaxseg.weights.mapping import WeightsError, convert, match_fraction

VGG16 = {
    "conv1_1": (64, 3, 3, 3),
    "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3),
    "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3),
    "conv3_2": (256, 256, 3, 3),
    "conv3_3": (256, 256, 3, 3),
    "conv4_1": (512, 256, 3, 3),
    "conv4_2": (512, 512, 3, 3),
    "conv4_3": (512, 512, 3, 3),
    "conv5_1": (512, 512, 3, 3),
    "conv5_2": (512, 512, 3, 3),
    "conv5_3": (512, 512, 3, 3),
}
VGG16_DENSE = {"fc6": (4096, 25088), "fc7": (4096, 4096), "fc8": (1000, 4096)}
CAFFENET = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
}
CAFFENET_DENSE = {"fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (1000, 4096)}
SEGNET_DECODER = {
    "conv5_3_D": (512, 512, 3, 3),
    "conv5_2_D": (512, 512, 3, 3),
    "conv5_1_D": (512, 512, 3, 3),
    "conv4_3_D": (512, 512, 3, 3),
    "conv4_2_D": (512, 512, 3, 3),
    "conv4_1_D": (256, 512, 3, 3),
    "conv3_3_D": (256, 256, 3, 3),
    "conv3_2_D": (256, 256, 3, 3),
    "conv3_1_D": (128, 256, 3, 3),
    "conv2_2_D": (128, 128, 3, 3),
    "conv2_1_D": (64, 128, 3, 3),
    "conv1_2_D": (64, 64, 3, 3),
}


def googlenet() -> dict[str, tuple[int, ...]]:
    """bvlc_googlenet, by the table of the paper."""
    layers = {
        "conv1/7x7_s2": (64, 3, 7, 7),
        "conv2/3x3_reduce": (64, 64, 1, 1),
        "conv2/3x3": (192, 64, 3, 3),
    }
    table = """
        3a 192 64 96 128 16 32 32
        3b 256 128 128 192 32 96 64
        4a 480 192 96 208 16 48 64
        4b 512 160 112 224 24 64 64
        4c 512 128 128 256 24 64 64
        4d 512 112 144 288 32 64 64
        4e 528 256 160 320 32 128 128
        5a 832 256 160 320 32 128 128
        5b 832 384 192 384 48 128 128
    """
    for line in table.strip().splitlines():
        block, *numbers = line.split()
        n, one, in3, three, in5, five, pool = map(int, numbers)
        layers |= {
            f"inception_{block}/1x1": (one, n, 1, 1),
            f"inception_{block}/3x3_reduce": (in3, n, 1, 1),
            f"inception_{block}/3x3": (three, in3, 3, 3),
            f"inception_{block}/5x5_reduce": (in5, n, 1, 1),
            f"inception_{block}/5x5": (five, in5, 5, 5),
            f"inception_{block}/pool_proj": (pool, n, 1, 1),
        }
    for i, n in (("1", 512), ("2", 528)):
        layers[f"loss{i}/conv"] = (128, n, 1, 1)
        layers[f"loss{i}/fc"] = (1024, 2048)
        layers[f"loss{i}/classifier"] = (1000, 1024)
    return layers | {"loss3/classifier": (1000, 1024)}


def tensors(layers) -> dict[str, np.ndarray]:
    """Kernels and biases; a tensor holds nothing but its number, and takes no memory."""
    shapes = {}
    for name, shape in layers.items():
        shapes |= {f"{name}/0": shape, f"{name}/1": shape[:1]}
    return {
        name: np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items(), start=1)
    }


def norms(layers) -> dict[str, np.ndarray]:
    shapes = {
        f"{name}_bn/{i}": shape[0] for name, shape in layers.items() for i in "01"
    }
    return {
        name: np.broadcast_to(np.float32(-i), (1, channels, 1, 1))
        for i, (name, channels) in enumerate(shapes.items(), start=1)
    }


def upscore(side: int, classes: int = 21) -> np.ndarray:
    kernel = np.zeros((classes, classes, side, side), np.float32)
    kernel[range(classes), range(classes)] = bilinear_kernel(side)
    return kernel


def fcn(name: str, encoder: str = "vgg16", classes: int = 21) -> dict[str, np.ndarray]:
    if encoder == "alexnet":
        layers = CAFFENET | {"fc6": (4096, 256, 6, 6)}
        fixed = {"upscore/0": upscore(63)}
    else:
        layers = VGG16 | {"fc6": (4096, 512, 7, 7)}
        sides = {
            "fcn32s": {"upscore": 64},
            "fcn16s": {"upscore2": 4, "upscore16": 32},
            "fcn8s": {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16},
        }[name.removesuffix("_atonce")]
        fixed = {f"{k}/0": upscore(side, classes) for k, side in sides.items()}
    layers |= {"fc7": (4096, 4096, 1, 1), "score_fr": (classes, 4096, 1, 1)}
    if name != "fcn32s":
        layers |= {"score_pool4": (classes, 512, 1, 1)}
    if name.startswith("fcn8s"):
        layers |= {"score_pool3": (classes, 256, 1, 1)}
    if name == "fcn8s_atonce":
        fixed["scale_pool4/0"] = np.full(512, 0.01, np.float32)
        fixed["scale_pool3/0"] = np.full(256, 0.0001, np.float32)
    return tensors(layers) | fixed


def segnet() -> dict[str, np.ndarray]:
    convs = VGG16 | SEGNET_DECODER
    return tensors(convs | {"conv1_1_D": (11, 64, 3, 3)}) | norms(convs)


def segnet_basic(scores: str) -> dict[str, np.ndarray]:
    convs = {f"conv{i}": (64, 64 if i > 1 else 3, 7, 7) for i in (1, 2, 3, 4)}
    convs |= {f"conv_decode{i}": (64, 64, 7, 7) for i in (4, 3, 2, 1)}
    return tensors(convs | {scores: (11, 64, 1, 1)}) | norms(convs)


def largefov(scores: str) -> dict[str, np.ndarray]:
    dense = {"fc6": (1024, 512, 3, 3), "fc7": (1024, 1024, 1, 1)}
    return tensors(VGG16 | dense | {scores: (21, 1024, 1, 1)})


@cache
def variables(name: str, encoder: str | None = None, classes: int = 21, **parts):
    """Abstract variables of a model, or of a classifier of 1000 classes."""
    if name == "classifier":
        model = create_classifier(encoder)
    else:
        parts |= {} if encoder is None else {"encoder": encoder}
        model = jaxseg.create_model(name, classes, **parts)
    image = jnp.zeros((1, 224, 224, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def fitting(file, like, name: str, encoder: str | None = None, **parts):
    candidates = mappings({"name": name, "encoder": encoder} | parts)
    return max(candidates, key=lambda mapping: match_fraction(file, mapping, like))


def number(value: np.ndarray) -> float:
    """What the one tensor that a variable is made of holds everywhere."""
    assert value.min() == value.max()
    return float(value.flat[0])


WHOLE = {
    "VGG16": ("classifier", "vgg16", lambda: tensors(VGG16 | VGG16_DENSE)),
    "CaffeNet": ("classifier", "alexnet", lambda: tensors(CAFFENET | CAFFENET_DENSE)),
    "BVLC GoogLeNet": ("classifier", "googlenet", lambda: tensors(googlenet())),
    "FCN-32s on VGG16": ("fcn32s", "vgg16", lambda: fcn("fcn32s")),
    "FCN-16s on VGG16": ("fcn16s", "vgg16", lambda: fcn("fcn16s")),
    "FCN-8s on VGG16": ("fcn8s", "vgg16", lambda: fcn("fcn8s")),
    "FCN-8s-atonce on VGG16": ("fcn8s_atonce", "vgg16", lambda: fcn("fcn8s_atonce")),
    "FCN-32s on CaffeNet": ("fcn32s", "alexnet", lambda: fcn("fcn32s", "alexnet")),
    "SegNet": ("segnet", None, segnet),
    "SegNet-Basic": ("segnet_basic", None, lambda: segnet_basic("conv_classifier")),
    "DeepLab-LargeFOV": ("deeplab_largefov", None, lambda: largefov("fc8_pascal")),
}


def serving_training(file):
    """The tensors of GoogLeNet's auxiliary heads: left out, and listed."""
    return {name for name in file if name.startswith(("loss1/", "loss2/"))}


@pytest.mark.parametrize("net", WHOLE)
def test_whole_nets_are_taken_over_to_the_last_tensor(net):
    name, encoder, make = WHOLE[net]
    file = make()
    like = variables(name, encoder, 11 if name.startswith("segnet") else 21)
    mapping = fitting(file, like, name, encoder)
    assert mapping.name == f"Caffe's {net}"
    converted = convert(file, like, mapping)
    assert converted.new == ()
    assert set(converted.dropped) == serving_training(file)
    assert converted.variables.keys() == flatten(like).keys()
    *_, scores = (k for k in flatten(like) if "score" in k or "head" in k)
    assert len(file[mapping.classes]) == flatten(like)[scores].shape[-1]


def test_of_two_names_for_the_scores_the_files_own_is_found():
    for name, scores, make in (
        ("segnet_basic", "dense_softmax_inner_prod", segnet_basic),
        ("deeplab_largefov", "fc8_voc12", largefov),
    ):
        file, like = make(scores), variables(name, None, 11 if "seg" in name else 21)
        mapping = fitting(file, like, name)
        assert mapping.classes == f"{scores}/0"
        assert convert(file, like, mapping).new == ()


def test_layers_stand_where_they_stood():
    file = segnet()
    like = variables("segnet", None, 11)
    taken = convert(file, like, fitting(file, like, "segnet")).variables
    places = {
        "encoder/stage3/conv2": "conv3_2",
        "decoder/blocks_0/conv1": "conv5_3_D",
        "decoder/blocks_0/conv2": "conv5_2_D",
        "decoder/blocks_0/conv3": "conv5_1_D",
        "decoder/blocks_1/conv1": "conv4_3_D",
        "decoder/blocks_1/conv3": "conv4_1_D",
        "decoder/blocks_2/conv3": "conv3_1_D",
        "decoder/blocks_3/conv1": "conv2_2_D",
        "decoder/blocks_3/conv2": "conv2_1_D",
        "decoder/blocks_4/conv1": "conv1_2_D",
        "head": "conv1_1_D",
    }
    for ours, theirs in places.items():
        for leaf, blob in (("kernel", 0), ("bias", 1)):
            value = number(taken[f"params/{ours}/{leaf}"])
            assert value == number(file[f"{theirs}/{blob}"]), ours
        if ours != "head":
            norm = ours.replace("conv", "bn")
            for leaf, blob in (("scale", 0), ("bias", 1)):
                value = number(taken[f"params/{norm}/{leaf}"])
                assert value == number(file[f"{theirs}_bn/{blob}"]), norm

    file = tensors(googlenet())
    like = variables("classifier", "googlenet")
    taken = convert(
        file, like, fitting(file, like, "classifier", "googlenet")
    ).variables
    places = {
        "encoder/conv2_reduce/conv": "conv2/3x3_reduce",
        "encoder/inception4b/reduce5x5/conv": "inception_4b/5x5_reduce",
        "encoder/inception4b/project/conv": "inception_4b/pool_proj",
        "encoder/inception4c/conv1x1/conv": "inception_4c/1x1",
        "encoder/inception4c/reduce3x3/conv": "inception_4c/3x3_reduce",
        "head/fc": "loss3/classifier",
    }
    for ours, theirs in places.items():
        assert number(taken[f"params/{ours}/kernel"]) == number(file[f"{theirs}/0"])


INTO_ENCODERS = {
    # what the model has of fc6 and fc7, where these are, and the layers left out
    ("fcn8s", "vgg16"): (("neck/block/fc6", "neck/block/fc7"), "fc8"),
    ("fcn32s", "vgg16_bn"): (("neck/block/fc6", "neck/block/fc7"), "fc8"),
    ("fcn32s", "alexnet"): (("neck/block/fc6", "neck/block/fc7"), "fc8"),
    ("fcn16s", "googlenet"): ((), "loss3/classifier"),
    ("segnet", None): ((), "fc6 fc7 fc8"),
    ("deconvnet", None): (("neck/parts_0/conv1", "neck/parts_1/conv1"), "fc8"),
    ("deeplab_largefov", None): (("neck/block/fc6", "neck/block/fc7"), "fc8"),
    ("deeplab_v2", "vgg16"): (
        tuple(f"neck/branches_{i}/block/fc{k}" for i in range(4) for k in (6, 7)),
        "fc8",
    ),
    ("encoder_decoder", "vgg16_bn"): ((), "fc6 fc7 fc8"),
    ("encoder_decoder", "alexnet"): ((), "fc6 fc7 fc8"),
    ("encoder_decoder", "googlenet"): ((), "loss3/classifier"),
}


@pytest.mark.parametrize("model", INTO_ENCODERS, ids=str)
def test_classifiers_give_encoders_their_convolutions(model):
    name, encoder = model
    dense, dropped = INTO_ENCODERS[model]
    file = {
        "alexnet": tensors(CAFFENET | CAFFENET_DENSE),
        "googlenet": tensors(googlenet()),
    }.get(encoder) or tensors(VGG16 | VGG16_DENSE)
    like = variables(name, encoder)
    mapping = fitting(file, like, name, encoder)
    converted = convert(file, like, mapping, replaced=frozenset())
    expected = {
        path
        for path in flatten(like)
        if ("/encoder/" in path and "/bn" not in path)
        or path.removeprefix("params/").rpartition("/")[0] in dense
    }
    assert converted.variables.keys() == expected
    assert set(converted.new) == flatten(like).keys() - expected
    gone = {f"{layer}/{i}" for layer in dropped.split() for i in "01"}
    assert set(converted.dropped) == gone | serving_training(file)
    with pytest.raises(WeightsError, match=f"{dropped.split()[0]}/0"):
        convert(file, like, mapping)


def test_nothing_where_caffe_has_nothing():
    assert mappings({"name": "unet", "encoder": None}) == ()
    assert mappings({"name": "fcn8s", "encoder": "resnet50"}) == ()
    assert mappings({"name": "deeplab_v3", "encoder": "resnet101"}) == ()
    assert mappings({"name": "classifier", "encoder": "vgg16_bn"}) == ()
    # FCN-8s was released on VGG16 alone: only the classifier is left.
    (mapping,) = mappings({"name": "fcn8s", "encoder": "alexnet"})
    assert mapping.kwargs == {}


def test_geometry_and_normalization_come_with_the_weights():
    released, backbone = mappings({"name": "fcn8s", "encoder": "vgg16"})
    assert released.kwargs == {"geometry": "released"}
    assert released.normalization.mean == (122.67891434, 116.66876762, 104.00698793)
    assert backbone.normalization.mean == (123.68, 116.779, 103.939)
    segnet = mappings({"name": "segnet", "encoder": None})[0]
    assert segnet.normalization == Normalization((0.0,) * 3, (1.0,) * 3)
    deeplab = mappings({"name": "deeplab_largefov", "encoder": None})[0]
    assert deeplab.normalization.mean == (122.675, 116.669, 104.008)


def source(path: str, shape, name: str, encoder: str | None = None, index=0, **parts):
    mapping = mappings({"name": name, "encoder": encoder} | parts)[index]
    return mapping.find(path, shape)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        (("classifier", "vgg16"), "stage1/conv1", "stage1/conv2"),
        (("classifier", "alexnet"), "stage1/conv1", "stage2/conv1"),
        (("classifier", "googlenet"), "conv1/conv", "conv2/conv"),
        (("fcn8s", "vgg16"), "stage1/conv1", "stage1/conv2"),
        (("segnet", None), "stage1/conv1", "stage1/conv2"),
        (("segnet_basic", None), "stage1/conv1", "stage2/conv1"),
        (("deeplab_largefov", None), "stage1/conv1", "stage1/conv2"),
    ],
    ids=str,
)
def test_red_sees_red_and_other_layers_stay(model, first, second):
    kernel = np.zeros((2, 3, 3, 3), np.float32)
    kernel[1, 2, 0, 1] = 5  # channel 2 of BGR, second output, row 0, column 1
    for layer, channel in ((first, 0), (second, 2)):
        made = source(f"params/encoder/{layer}/kernel", (), *model).make(kernel)
        assert made.shape == (3, 3, 3, 2)
        assert made[0, 1, channel, 1] == 5
        assert np.count_nonzero(made) == 1


def test_dense_layers_flatten_channels_first():
    """fc6 over 7x7 cells: the classifier's, and FCN's convolution at its one place."""
    kernel, x = drawn(4, 2 * 49), drawn(1, 7, 7, 2)
    expected = x.transpose(0, 3, 1, 2).reshape(1, -1) @ kernel.T  # as Caffe has it
    head = source("params/head/fc6/kernel", (), "classifier", "vgg16").make(kernel)
    np.testing.assert_allclose(x.reshape(1, -1) @ head, expected, rtol=1e-5)
    path = "params/neck/block/fc6/kernel"
    neck = source(path, (7, 7, 2, 4), "fcn8s", "vgg16", index=1).make(kernel)
    assert neck.shape == (7, 7, 2, 4)
    slid = jax.lax.conv_general_dilated(
        x, neck, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(slid[:, 0, 0], expected, rtol=1e-4, atol=1e-5)
    # A file that has them as convolutions already gives the same.
    again = source(path, (7, 7, 2, 4), "fcn8s", "vgg16", index=1).make(
        kernel.reshape(4, 2, 7, 7)
    )
    np.testing.assert_array_equal(again, neck)


def test_largefov_takes_some_taps_and_units():
    kernel = np.arange(4 * 2 * 49, dtype=np.float32).reshape(4, -1)
    find = mappings({"name": "deeplab_largefov", "encoder": None})[-1].find
    shape = (3, 3, 2, 2)
    made = find("params/neck/block/fc6/kernel", shape).make(kernel)
    units, taps = [0, 2], [0, 3, 6]
    cells = kernel.reshape(4, 2, 7, 7)[units][:, :, taps][:, :, :, taps]
    np.testing.assert_array_equal(made, cells.transpose(2, 3, 1, 0))
    bias = find("params/neck/block/fc6/bias", (2,)).make(np.float32([5, 6, 7, 8]))
    np.testing.assert_array_equal(bias, [5, 7])
    # The reduced VGG16 that DeepLab starts from has just these layers.
    reduced = drawn(2, 2, 3, 3)
    made = find("params/neck/block/fc6/kernel", shape).make(reduced)
    np.testing.assert_array_equal(made, reduced.transpose(2, 3, 1, 0))


def test_groups_see_their_own_channels():
    """CaffeNet's conv2: the first half of the outputs sees the first half of inputs."""
    kernel, x = drawn(4, 3, 2, 2), drawn(1, 5, 5, 6)
    made = source("params/encoder/stage2/conv1/kernel", (), "classifier", "alexnet")
    conv = nn.Conv(4, (2, 2), padding="VALID", feature_group_count=2, use_bias=False)
    result = conv.apply({"params": {"kernel": made.make(kernel)}}, x)
    expected = np.zeros((1, 4, 4, 4))
    for out in range(4):
        seen = x[0, :, :, 3 * (out // 2) :][:, :, :3]
        for i in range(4):
            for j in range(4):
                window = seen[i : i + 2, j : j + 2].transpose(2, 0, 1)
                expected[0, i, j, out] = np.sum(window * kernel[out])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_folded_norm_is_exactly_a_scale_and_a_shift():
    scale, shift = drawn(1, 6, 1, 1), drawn(1, 6, 1, 1) + 1
    values = {}
    for collection, leaf in (
        ("params", "scale"),
        ("params", "bias"),
        ("batch_stats", "mean"),
        ("batch_stats", "var"),
    ):
        path = f"{collection}/encoder/stage2/bn1/{leaf}"
        found = source(path, (6,), "segnet")
        assert found.names == (f"conv2_1_bn/{int(leaf == 'bias')}",)
        values[f"{collection}/{leaf}"] = found.make(shift if leaf == "bias" else scale)
    x = drawn(2, 3, 3, 6)
    y = batch_norm(use_running_average=True).apply(unflatten(values), x)
    np.testing.assert_array_equal(y, x * scale.ravel() + shift.ravel())


def test_fcns_constants_are_checked():
    for name, tensor in (
        ("fcn32s", "upscore/0"),
        ("fcn8s", "upscore2/0"),
        ("fcn8s", "upscore_pool4/0"),
        ("fcn8s", "upscore8/0"),
        ("fcn8s_atonce", "scale_pool4/0"),
        ("fcn8s_atonce", "scale_pool3/0"),
    ):
        file, like = fcn(name), variables(name, "vgg16")
        file[tensor] = file[tensor].copy()
        file[tensor].flat[-1] *= 1.01
        with pytest.raises(WeightsError, match=f"{tensor[:-2]} is fixed"):
            convert(file, like, fitting(file, like, name, "vgg16"))
    # Between different channels there is nothing.
    file = fcn("fcn32s")
    file["upscore/0"][0, 1, 5, 5] = 0.01
    like = variables("fcn32s", "vgg16")
    with pytest.raises(WeightsError, match="upscore is fixed"):
        convert(file, like, fitting(file, like, "fcn32s", "vgg16"))


def test_learned_enlargements_are_taken_as_they_are():
    file = fcn("fcn8s", classes=2)
    file["upscore2/0"] = drawn(2, 2, 4, 4)
    like = variables("fcn8s", "vgg16", 2, learned=True)
    mapping = fitting(file, like, "fcn8s", "vgg16", learned=True)
    taken = convert(file, like, mapping)
    assert taken.new == ()
    # One cell that is 1 in channel 1 lays down the kernel of channel 1.
    x = jnp.zeros((1, 1, 1, 2)).at[..., 1].set(1)
    layer = ConvTranspose(2, (4, 4), 2, padding="VALID", use_bias=False)
    kernel = taken.variables["params/decoder/upsamplers_0/conv/kernel"]
    laid = layer.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(laid[0].transpose(2, 0, 1), file["upscore2/0"][1])
    np.testing.assert_array_equal(
        taken.variables["params/decoder/upsamplers_1/conv/kernel"],
        upscore(4, 2).transpose(2, 3, 0, 1),
    )
    # The last is fixed all the same.
    file["upscore8/0"] = drawn(2, 2, 16, 16)
    with pytest.raises(WeightsError, match="upscore8 is fixed"):
        convert(file, like, mapping)


def test_other_classes_start_afresh_with_all_that_depends_on_them():
    file = fcn("fcn8s_atonce")
    like = variables("fcn8s_atonce", "vgg16", 5)
    mapping = fitting(file, like, "fcn8s_atonce", "vgg16")
    scores = frozenset(p for p in flatten(like) if "score" in p or "skips" in p)
    converted = convert(file, like, mapping, replaced=scores)
    assert set(converted.new) == scores
    assert set(converted.dropped) == {
        f"{layer}/{i}"
        for layer in ("score_fr", "score_pool4", "score_pool3")
        for i in "01"
    } | {
        "upscore2/0",
        "upscore_pool4/0",
        "upscore8/0",
        "scale_pool4/0",
        "scale_pool3/0",
    }


def test_a_tensor_too_many_or_too_few_is_named():
    like = variables("segnet", None, 11)
    file = segnet() | {"camvid/0": np.zeros((11, 64, 3, 3), np.float32)}
    del file["conv3_2_bn/1"]
    with pytest.raises(WeightsError) as error:
        convert(file, like, fitting(file, like, "segnet"))
    assert "not in the file: conv3_2_bn/1" in str(error.value)
    assert "in the file, but not in the model: camvid/0" in str(error.value)


def test_segnet_basic_computes_what_caffe_computes():
    """The whole net, beside the prototxt's layers one after the other in torch."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    file = {
        name: (rng.normal(size=t.shape) / t[0].size ** 0.5).astype(np.float32)
        for name, t in segnet_basic("conv_classifier").items()
    }
    rgb = rng.integers(0, 256, (1, 24, 16, 3)).astype(np.float32)
    model = jaxseg.create_model("segnet_basic", 11)
    like = variables("segnet_basic", None, 11)
    taken = convert(file, like, fitting(file, like, "segnet_basic")).variables
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(unflatten(taken), rgb)

    blobs = {name: torch.from_numpy(value) for name, value in file.items()}

    def conv_bn(x, name):
        x = functional.conv2d(x, blobs[f"{name}/0"], blobs[f"{name}/1"], padding=3)
        return blobs[f"{name}_bn/0"] * x + blobs[f"{name}_bn/1"]

    bgr = torch.from_numpy(rgb[..., ::-1].transpose(0, 3, 1, 2).copy())
    x = functional.local_response_norm(bgr, 5, alpha=1e-4, beta=0.75, k=1.0)
    masks = []
    for i in (1, 2, 3, 4):
        x = torch.relu(conv_bn(x, f"conv{i}"))
        size = x.shape
        x, mask = functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        masks.append((size, mask))
    for i in (4, 3, 2, 1):
        size, mask = masks[i - 1]
        x = functional.max_unpool2d(x, mask, 2, output_size=size)
        x = conv_bn(x, f"conv_decode{i}")
    x = functional.conv2d(x, blobs["conv_classifier/0"], blobs["conv_classifier/1"])
    expected = x.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.std())
