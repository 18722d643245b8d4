"""pytorch-fcn's state dicts against its forward pass, written once more, narrow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights.mapping import WeightsError, convert
from jaxseg.weights.pytorch_fcn import mappings

CLASSES, HIDDEN = 3, 6
WIDTHS = (2, 4, 6, 8, 8)
DEPTHS = (2, 2, 3, 3, 3)
NAMES = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")
SCALES = {"fcn8s_atonce": (0.01, 0.0001)}


def _layers(name):
    """[Cout, Cin, side] of every convolution, and the sides of the transposed ones."""
    convs, channels = {}, 3
    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS), start=1):
        for i in range(1, depth + 1):
            convs[f"conv{stage}_{i}"] = (width, channels, 3)
            channels = width
    convs |= {"fc6": (HIDDEN, channels, 7), "fc7": (HIDDEN, HIDDEN, 1)}
    convs["score_fr"] = (CLASSES, HIDDEN, 1)
    if name == "fcn32s":
        return convs, {"upscore": 64}
    convs["score_pool4"] = (CLASSES, WIDTHS[3], 1)
    if name == "fcn16s":
        return convs, {"upscore2": 4, "upscore16": 32}
    convs["score_pool3"] = (CLASSES, WIDTHS[2], 1)
    return convs, {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}


def _state_dict(name):
    rng = np.random.default_rng(0)
    convs, ups = _layers(name)
    state = {}
    for layer, (out, into, side) in convs.items():
        scale = np.sqrt(2 / (into * side**2))
        state[f"{layer}.weight"] = rng.normal(0, scale, (out, into, side, side))
        state[f"{layer}.bias"] = rng.uniform(-0.1, 0.1, out)
    for layer, side in ups.items():
        row = 1 - np.abs(np.arange(side) - (side - 1) / 2) / (side / 2)
        kernel = np.zeros((CLASSES, CLASSES, side, side))
        kernel[range(CLASSES), range(CLASSES)] = np.outer(row, row)
        state[f"{layer}.weight"] = kernel
    return {k: v.astype(np.float32) for k, v in state.items()}


def _forward(torch, name, state, image):
    f = torch.nn.functional
    state = {k: torch.tensor(v) for k, v in state.items()}

    def conv(x, layer, padding=0):
        return f.conv2d(
            x, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=padding
        )

    def up(x, layer, stride):
        return f.conv_transpose2d(x, state[f"{layer}.weight"], stride=stride)

    def cropped(x, like, offset):
        height, width = like.shape[2:]
        return x[:, :, offset : offset + height, offset : offset + width]

    x, pools = image, {}
    for stage, depth in enumerate(DEPTHS, start=1):
        for i in range(1, depth + 1):
            x = f.relu(conv(x, f"conv{stage}_{i}", 100 if stage == i == 1 else 1))
        pools[stage] = x = f.max_pool2d(x, 2, stride=2, ceil_mode=True)
    x = f.relu(conv(f.relu(conv(x, "fc6")), "fc7"))
    x = conv(x, "score_fr")
    if name == "fcn32s":
        return cropped(up(x, "upscore", 32), image, 19)
    coarse, fine = SCALES.get(name, (1, 1))
    x = up(x, "upscore2", 2)
    x = x + cropped(conv(coarse * pools[4], "score_pool4"), x, 5)
    if name == "fcn16s":
        return cropped(up(x, "upscore16", 16), image, 27)
    x = up(x, "upscore_pool4", 2)
    x = x + cropped(conv(fine * pools[3], "score_pool3"), x, 9)
    return cropped(up(x, "upscore8", 8), image, 31)


def _model(name, **kwargs):
    return create_model(
        name,
        CLASSES,
        encoder_kwargs=dict(widths=WIDTHS),
        hidden=HIDDEN,
        **kwargs,
    )


def _shapes(model):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, image)


def _mapping(name, **kwargs):
    (mapping,) = mappings({"name": name, "encoder": "vgg16"} | kwargs)
    return mapping


def _assert_same_logits(name, state, **kwargs):
    torch = pytest.importorskip("torch")
    rgb = np.random.default_rng(1).uniform(0, 255, (1, 45, 34, 3)).astype(np.float32)
    bgr = rgb[..., ::-1] - np.reshape(
        np.float32([104.00698793, 116.66876762, 122.67891434]), (1, 1, 1, 3)
    )
    bgr = torch.tensor(bgr.transpose(0, 3, 1, 2).copy())
    expected = _forward(torch, name, state, bgr).numpy().transpose(0, 2, 3, 1)

    mapping = _mapping(name, **kwargs)
    model = _model(name, **mapping.kwargs, **kwargs)
    like = _shapes(model)
    variables = convert(state, like, mapping).variables
    assert variables.keys() == flatten(like).keys()
    mean, std = (
        np.reshape(np.float32(x), (1, 1, 1, 3))
        for x in (mapping.normalization.mean, mapping.normalization.std)
    )
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits = apply(unflatten(variables), (rgb - mean) / std)
    assert logits.shape == expected.shape
    error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
    assert error < 1e-4, f"relative error {error:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_same_logits(name):
    _assert_same_logits(name, _state_dict(name))


def test_same_logits_with_learned_enlargements():
    state = _state_dict("fcn8s")
    rng = np.random.default_rng(2)
    for layer in ("upscore2", "upscore_pool4"):
        kernel = state[f"{layer}.weight"]
        kernel += rng.uniform(-0.2, 0.2, kernel.shape).astype(np.float32)
    _assert_same_logits("fcn8s", state, learned=True)


@pytest.mark.parametrize(
    ("layer", "learned", "cure"),
    [
        ("upscore_pool4", False, "learned=True"),
        ("upscore8", True, "upsampling is fixed"),
    ],
)
def test_a_learned_enlargement_does_not_become_a_fixed_one(layer, learned, cure):
    state = _state_dict("fcn8s")
    state[f"{layer}.weight"][0, 1, 2, 2] += 0.01  # from one class to another
    mapping = _mapping("fcn8s", learned=learned)
    with pytest.raises(WeightsError, match=f"{layer}.weight is not a bilinear.*{cure}"):
        convert(state, _shapes(_model("fcn8s", learned=learned)), mapping)


def test_new_classes_leave_scores_and_enlargements_out():
    like = flatten(_shapes(_model("fcn16s")))
    scores = {path for path in like if "score" in path or "project" in path}
    state = _state_dict("fcn16s")
    state["upscore16.weight"] += 1
    mapping = _mapping("fcn16s")
    converted = convert(state, like, mapping, replaced=frozenset(scores))
    assert set(converted.new) == scores
    assert converted.dropped == (
        "score_fr.bias",
        "score_fr.weight",
        "score_pool4.bias",
        "score_pool4.weight",
        "upscore16.weight",
        "upscore2.weight",
    )


def test_other_models_have_no_mapping():
    assert mappings({"name": "fcn8s", "encoder": "resnet50"}) == ()
    assert mappings({"name": "segnet", "encoder": None}) == ()
