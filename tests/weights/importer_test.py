"""Files of weights into models and workdirs, and out again."""

import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import abstract_variables, initial_variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights import files
from jaxseg.weights.importer import (
    class_dependent,
    export_weights,
    import_weights,
    read_fitting,
)
from jaxseg.weights.mapping import (
    IMAGENET,
    Mapping,
    Source,
    WeightsError,
    convert,
    summary,
)
from tests.helpers import init_variables

VGG = {"widths": (2, 2, 4, 4, 4), "depths": (2, 2, 3, 3, 3)}
FCN = {"name": "fcn32s", "encoder_kwargs": VGG, "hidden": 6, "num_classes": 3}
SEGNET = {"name": "segnet", "num_classes": 3, "width": 2, "depths": (1, 1)}
METADATA = RunMetadata(
    model=SEGNET,
    class_names=("road", "tree", "sky"),
    palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    normalization=IMAGENET,
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A narrow VGG16 with random weights under torchvision's names, in an .npz."""
    rng = np.random.default_rng(0)
    sizes = {
        "classifier.0": (6, 4 * 49),
        "classifier.3": (6, 6),
        "classifier.6": (9, 6),
    }
    channels, index = 3, 0
    for width, depth in zip(VGG["widths"], VGG["depths"]):
        for _ in range(depth):
            sizes[f"features.{index}"] = (width, channels, 3, 3)
            channels, index = width, index + 2
        index += 1
    tensors = {}
    for name, shape in sizes.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0])
    path = tmp_path_factory.mktemp("classifier") / "vgg16.npz"
    np.savez(path, **tensors)
    return path, tensors


def _initialized(model):
    module = jaxseg.create_model(**model)
    image = jnp.zeros((1, 64, 64, 3))
    return init_variables(module, image, seed=1)


def test_a_classifier_starts_a_segmenter(classifier):
    path, tensors = classifier
    imported = import_weights(path, FCN, head="new")
    leaves = flatten(imported.variables)
    np.testing.assert_array_equal(
        leaves["params/encoder/stage3/conv2/kernel"],
        tensors["features.12.weight"].transpose(2, 3, 1, 0).astype(np.float32),
    )
    np.testing.assert_array_equal(
        leaves["params/neck/block/fc6/kernel"][5, 2, 3],
        tensors["classifier.0.weight"].reshape(6, 4, 7, 7)[:, 3, 5, 2].astype("f4"),
    )
    assert imported.converted.new == (
        "params/neck/score/bias",
        "params/neck/score/kernel",
    )
    assert imported.converted.dropped == ("classifier.6.bias", "classifier.6.weight")
    assert imported.converted.mapping.normalization == IMAGENET
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())


def test_nothing_is_left_out_unasked(classifier):
    with pytest.raises(WeightsError) as error:
        import_weights(classifier[0], FCN)
    for name in ("classifier.6.weight", "params/neck/score/kernel", "a new head"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "unet", "num_classes": 3}, "No weights of other libraries .* unet"),
        ({"name": "fcn32"}, "Unknown model 'fcn32'.*fcn32s"),
        ({"name": "vgg16"}, "encoder_decoder with encoder='vgg16'"),
        ({"name": "fcn32s"}, "does not contain the number of classes"),
        (None, "does not contain the name of its model"),
    ],
)
def test_what_cannot_be_imported_says_why(classifier, model, message):
    with pytest.raises(ValueError, match=message):
        import_weights(classifier[0], model, head="new")


def test_what_all_names_begin_with_does_not_matter(classifier, tmp_path):
    path, tensors = classifier
    wrapped = tmp_path / "wrapped.npz"
    np.savez(wrapped, **{f"net.model.{name}": x for name, x in tensors.items()})
    plain, other = (import_weights(p, FCN, head="new") for p in (path, wrapped))
    jax.tree.map(np.testing.assert_array_equal, plain.variables, other.variables)
    assert plain.converted.dropped == other.converted.dropped


def test_many_names_are_counted_by_how_they_begin():
    assert summary(["b/2", "a"]) == "a, b/2"
    many = [f"params/decoder/conv{i}/kernel" for i in range(30)] + ["layer1.0.bias"]
    assert summary(many) == "layer1.0.* (1), params/decoder/* (30)"


def test_a_mode_for_the_head_that_is_not_known(classifier):
    with pytest.raises(WeightsError, match='must be "keep" or "new"'):
        import_weights(classifier[0], FCN, head="fresh")


def test_the_variables_that_depend_on_the_classes():
    assert class_dependent(SEGNET) == {
        "params/head/bias",
        "params/head/kernel",
    }
    fcn16s = FCN | {"name": "fcn16s", "learned": True}
    assert class_dependent(fcn16s) == {
        "params/decoder/skips_0/project/bias",
        "params/decoder/skips_0/project/kernel",
        "params/decoder/upsamplers_0/conv/kernel",
        "params/neck/score/bias",
        "params/neck/score/kernel",
    }


def test_an_export_comes_back_without_loss(tmp_path):
    variables = _initialized(SEGNET)
    path = tmp_path / "segnet.safetensors"
    export_weights(path, variables, METADATA)
    imported = import_weights(path)
    assert imported.model == SEGNET | {"depths": [1, 1]}
    assert imported.converted.new == imported.converted.dropped == ()
    jax.tree.map(np.testing.assert_array_equal, imported.variables, dict(variables))


def test_an_export_of_gray_images_comes_back(tmp_path):
    module = jaxseg.create_model(**SEGNET)
    variables = initial_variables(module, jax.random.key(1), channels=1)
    path = tmp_path / "gray.safetensors"
    one = Normalization((128.0,), (64.0,))
    metadata = METADATA.replace(channels=1, normalization=one)
    export_weights(path, variables, metadata)
    imported = import_weights(path)
    jax.tree.map(np.testing.assert_array_equal, imported.variables, dict(variables))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("params/head/kernel", np.nan, "NaN or infinite: params/head/kernel"),
        ("params/head/bias", np.inf, "NaN or infinite: params/head/bias"),
        (
            "batch_stats/encoder/stage1/bn1/var",
            -0.1,
            "negative variances: batch_stats/encoder/stage1/bn1/var",
        ),
    ],
)
def test_invalid_values_are_named(path, value, message, tmp_path):
    leaves = dict(flatten(_initialized(SEGNET)))
    leaves[path] = np.asarray(leaves[path]).copy()
    leaves[path].flat[0] = value
    file = tmp_path / "net.safetensors"
    export_weights(file, unflatten(leaves), METADATA)
    with pytest.raises(WeightsError, match=rf"net\.safetensors .*{message}"):
        import_weights(file)
    with pytest.raises(WeightsError, match=message):
        read_fitting(file, SEGNET).convert(_initialized(SEGNET))


def test_complex_numbers_are_refused(tmp_path):
    leaves = dict(flatten(_initialized(SEGNET)))
    leaves["params/head/bias"] = np.zeros(3, np.complex64)
    np.savez(tmp_path / "net.npz", **leaves)
    like = abstract_variables(jaxseg.create_model(**SEGNET))
    own = Mapping("own", lambda path, shape: Source((path,)), IMAGENET)
    with pytest.raises(WeightsError, match="params/head/bias is real, from complex"):
        convert(leaves, like, own)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("null", "the header of .* not a JSON object"),
        ("[" * 100_000, "the header of .* nested too deeply"),
        ('{"a": 1, "a": 2}', "the header of .* given twice"),
    ],
)
def test_damaged_headers_are_named(header, message, tmp_path):
    file = tmp_path / "net.safetensors"
    files.write_safetensors(file, {"x": np.zeros(1)}, {"jaxseg": header})
    with pytest.raises(WeightsError, match=message):
        import_weights(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [8000] * 2}, "more than .* layers"),
        ({"depths": [8000] * 100}, "sum of all integers"),
        ({"width": "wide"}, "cannot be built"),
    ],
)
def test_a_header_cannot_ask_for_an_endless_model(changes, message, tmp_path):
    file = tmp_path / "net.safetensors"
    content = METADATA.to_json()
    content["model"] = SEGNET | changes
    content["normalization"] = asdict(IMAGENET)
    tensors = {"x": np.zeros(1)}
    files.write_safetensors(file, tensors, {"jaxseg": json.dumps(content)})
    with pytest.raises(WeightsError, match=message):
        import_weights(file)


def test_an_export_for_other_classes(tmp_path):
    variables = _initialized(SEGNET)
    path = tmp_path / "segnet.safetensors"
    export_weights(path, variables, METADATA)
    wider = SEGNET | {"num_classes": 5}
    with pytest.raises(
        WeightsError, match=r"params/head/bias is \(5,\), from .* \(3,\)"
    ):
        import_weights(path, wider)
    imported = import_weights(path, wider, head="new")
    assert imported.variables["params"]["head"]["kernel"].shape[-1] == 5
    assert imported.converted.new == ("params/head/bias", "params/head/kernel")
    assert imported.converted.dropped == ("params/head/bias", "params/head/kernel")


def test_a_run_starts_from_a_file(classifier):
    variables = _initialized(FCN)
    converted = read_fitting(classifier[0], FCN).convert(variables, head="new")
    assert converted.variables.keys() == flatten(variables).keys() - {
        "params/neck/score/bias",
        "params/neck/score/kernel",
    }
