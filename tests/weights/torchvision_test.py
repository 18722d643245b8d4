"""torchvision's names and shapes: every tensor has its place, and faults are named.

That the logits are the same is shown by the tests of the models and encoders, which
compare with torchvision through these mappings, and by benchmarks/parity.py.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from jaxseg.models.classifier import create_classifier
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights.mapping import IMAGENET, WeightsError, convert, match_fraction
from jaxseg.weights.torchvision import CLASSIFIERS, mappings


@pytest.fixture
def tensors(torchvision):
    """State dicts of the right names and shapes, without memory."""
    import torch

    @cache
    def build(name, **arguments):
        models = torchvision.models
        if "_resnet" in name:
            models, arguments = (
                models.segmentation,
                arguments | {"weights_backbone": None},
            )
        if name == "googlenet":
            arguments["init_weights"] = False
        with torch.device("meta"):
            state = getattr(models, name)(weights=None, **arguments).state_dict()
        return {k: np.broadcast_to(np.float32(0), v.shape) for k, v in state.items()}

    return lambda name, **arguments: dict(build(name, **arguments))


def _shapes(model, size=224):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, image)


def serving_training(given):
    """The tensors of GoogLeNet's auxiliary heads but counters: left out, and listed."""
    auxiliary = {name for name in given if name.startswith(("aux1.", "aux2."))}
    return {name for name in auxiliary if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("encoder", CLASSIFIERS)
def test_every_tensor_of_a_classifier_has_its_place(tensors, encoder):
    (mapping,) = mappings({"name": "classifier", "encoder": encoder})
    given = tensors(CLASSIFIERS[encoder].name)
    like = _shapes(create_classifier(encoder))
    converted = convert(given, like, mapping)
    assert converted.variables.keys() == flatten(like).keys()
    assert converted.new == ()
    assert set(converted.dropped) == serving_training(given)
    assert len(given[mapping.classes]) == 1000


@pytest.mark.parametrize(
    ("name", "encoder", "aux"),
    [
        ("fcn_resnet50", "resnet50", True),
        ("fcn_resnet50", "resnet101", False),
        ("deeplabv3_resnet50", "resnet50", False),
        ("deeplabv3_resnet50", "resnet101", True),
    ],
)
def test_every_tensor_of_a_segmenter_has_its_place(tensors, name, encoder, aux):
    plain, auxiliary, _ = mappings({"name": name, "encoder": encoder})
    mapping = auxiliary if aux else plain
    given = tensors(name.replace("resnet50", encoder), num_classes=21, aux_loss=aux)
    like = _shapes(create_model(name, 21, encoder=encoder, **mapping.kwargs), size=64)
    converted = convert(given, like, mapping)
    assert converted.variables.keys() == flatten(like).keys()
    assert len(given[mapping.classes]) == 21
    assert match_fraction(given, mapping, like) > 0.8


def test_an_auxiliary_head_is_free_on_both_sides(tensors):
    plain, auxiliary, _ = mappings({"name": "fcn_resnet50", "encoder": "resnet50"})
    with_aux = tensors("fcn_resnet50", num_classes=21, aux_loss=True)
    without = tensors("fcn_resnet50", num_classes=21, aux_loss=False)
    bare = _shapes(create_model("fcn_resnet50", 21), size=64)
    headed = _shapes(create_model("fcn_resnet50", 21, **auxiliary.kwargs), size=64)

    assert convert(with_aux, bare, plain).variables.keys() == flatten(bare).keys()
    assert match_fraction(with_aux, auxiliary, headed) > match_fraction(
        with_aux, plain, bare
    )
    assert match_fraction(without, plain, bare) > match_fraction(
        without, auxiliary, headed
    )
    new = convert(without, headed, plain, replaced=frozenset()).new
    assert set(new) == flatten(headed).keys() - flatten(bare).keys()


DENSE = ("fc6", "fc7")


@pytest.mark.parametrize(
    ("name", "encoder", "places", "left"),
    [
        ("deconvnet", None, ("parts_0/conv1", "parts_1/conv1"), ["classifier.6"]),
        ("deeplab_largefov", None, DENSE, ["classifier.6"]),
        ("deeplab_v2", "vgg16", DENSE, ["classifier.6"]),
        ("deeplab_v3plus", "resnet50", (), ["fc"]),
        ("encoder_decoder", "convnext_tiny", (), ["classifier.0", "classifier.2"]),
        ("encoder_decoder", "mobilenet_v2", (), ["classifier.1"]),
        ("fcn16s", "googlenet_bn", (), ["fc"]),
        ("fcn32s", "alexnet_torchvision", DENSE, ["classifier.6"]),
        ("fcn8s", "vgg16", DENSE, ["classifier.6"]),
        ("fcn_resnet50", "resnet50", (), ["fc"]),
        (
            "segnet",
            None,
            (),
            ["classifier.0", "classifier.3", "classifier.6"],
        ),
    ],
)
def test_a_classifier_gives_an_encoder(tensors, name, encoder, places, left):
    *_, mapping = mappings({"name": name, "encoder": encoder})
    given = tensors(mapping.name.split()[-1])
    parts = {} if encoder is None else {"encoder": encoder}
    like = _shapes(create_model(name, 3, **parts))
    converted = convert(given, like, mapping, replaced=frozenset())

    for path in flatten(like):
        inside = "/encoder/" in path or any(f"/{p}/" in path for p in places)
        assert (path in converted.variables) == inside, path
    assert set(converted.dropped) == serving_training(given) | {
        f"{layer}.{leaf}" for layer in left for leaf in ("bias", "weight")
    }


def test_models_without_such_an_encoder_have_no_mapping():
    assert mappings({"name": "unet", "encoder": None}) == ()
    assert mappings({"name": "fcn8s", "encoder": "alexnet"}) == ()


def _narrow_vgg(torchvision, hidden=8):
    """VGG16 with a 32nd of its channels."""
    import torch

    plan = [n if n == "M" else n // 32 for n in torchvision.models.vgg.cfgs["D"]]
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers(plan), 5)
    net.classifier[0] = torch.nn.Linear(16 * 49, hidden)
    net.classifier[3] = torch.nn.Linear(hidden, hidden)
    net.classifier[6] = torch.nn.Linear(hidden, 5)
    return net.eval()


def test_fcn_has_the_dense_layers_of_vgg16(torchvision):
    """The middle cell of a 224x224 image sees all of it, as the classifier does."""
    import torch

    torch.manual_seed(0)
    reference = _narrow_vgg(torchvision)
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        x = reference.features(torch.tensor(image.transpose(0, 3, 1, 2)))
        expected = reference.classifier[:6](x.flatten(1)).numpy()[0]

    widths = dict(widths=(2, 4, 8, 16, 16))
    model = create_model("fcn32s", 5, encoder_kwargs=widths, hidden=8)
    (mapping,) = mappings({"name": "fcn32s", "encoder": "vgg16"})
    given = {k: v.numpy() for k, v in reference.state_dict().items()}
    converted = convert(given, _shapes(model), mapping, replaced=frozenset())
    score = {f"params/neck/score/{k}": np.zeros(1) for k in ("kernel", "bias")}
    variables = unflatten(converted.variables | score)

    def dense(model, image):
        deepest = model.encoder(image, train=False).maps[-1]
        return model.neck.block(deepest, train=False)

    cells = jax.jit(lambda v, x: model.apply(v, x, method=dense))(variables, image)
    assert np.max(expected) > 0.01
    np.testing.assert_allclose(cells[0, 3, 3], expected, atol=1e-5)


def test_largefov_has_every_third_tap_and_fourth_unit(torchvision):
    reference = _narrow_vgg(torchvision, hidden=16)
    model = create_model("deeplab_largefov", 5, width=2, hidden=4)
    (mapping,) = mappings({"name": "deeplab_largefov", "encoder": None})
    given = {k: v.numpy() for k, v in reference.state_dict().items()}
    converted = convert(given, _shapes(model, 65), mapping, replaced=frozenset())

    fc6, fc7 = (f"params/neck/block/{name}" for name in DENSE)
    taps = given["classifier.0.weight"].reshape(16, 16, 7, 7)[::4, :, ::3, ::3]
    kernel = converted.variables[f"{fc6}/kernel"]
    np.testing.assert_array_equal(kernel, taps.transpose(2, 3, 1, 0))
    bias = converted.variables[f"{fc6}/bias"]
    np.testing.assert_array_equal(bias, given["classifier.0.bias"][::4])
    kernel = converted.variables[f"{fc7}/kernel"][0, 0]
    np.testing.assert_array_equal(kernel, given["classifier.3.weight"][::4, ::4].T)


def test_googlenet_is_normalized_as_it_was_trained(torchvision):
    """`transform_input` turns torchvision's normalization into another."""
    import torch

    rgb = np.random.default_rng(0).uniform(0, 255, (1, 5, 5, 3))

    def normalized(mean, std):
        return (rgb - np.reshape(mean, (1, 1, 1, 3))) / np.reshape(std, (1, 1, 1, 3))

    net = torchvision.models.googlenet(init_weights=False, transform_input=True)
    x = torch.tensor(normalized(IMAGENET.mean, IMAGENET.std).transpose(0, 3, 1, 2))
    expected = net._transform_input(x).numpy().transpose(0, 2, 3, 1)
    (mapping,) = mappings({"name": "classifier", "encoder": "googlenet_bn"})
    ours = normalized(mapping.normalization.mean, mapping.normalization.std)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_faults_are_named(tensors):
    (mapping,) = mappings({"name": "classifier", "encoder": "resnet18"})
    like = _shapes(create_classifier("resnet18", 7), size=64)
    given = tensors("resnet18")
    convert(tensors("resnet18", num_classes=7), like, mapping)

    with pytest.raises(WeightsError) as error:
        convert(given, like, mapping)
    assert "params/head/fc/kernel is (512, 7), from fc.weight (1000, 512)" in str(
        error.value
    )
    del given["layer2.0.downsample.1.running_var"]
    given["layer5.0.conv1.weight"] = np.zeros(1)
    with pytest.raises(WeightsError) as error:
        convert(given, like, mapping)
    assert "not in the file: layer2.0.downsample.1.running_var" in str(error.value)
    assert "not in the model: layer5.0.conv1.weight" in str(error.value)


def test_a_new_head_is_listed(tensors):
    (mapping,) = mappings({"name": "classifier", "encoder": "resnet18"})
    like = _shapes(create_classifier("resnet18", 7), size=64)
    head = ("params/head/fc/bias", "params/head/fc/kernel")
    converted = convert(tensors("resnet18"), like, mapping, replaced=frozenset(head))
    assert converted.new == head
    assert converted.dropped == ("fc.bias", "fc.weight")
    assert converted.variables.keys() == flatten(like).keys() - set(head)
