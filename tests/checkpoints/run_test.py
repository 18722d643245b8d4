"""Workdirs that are made without a run, and runs that start from elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.checkpoints.run import NormalizationMismatchError, PretrainedWeights
from jaxseg.data.palette import distinct_palette
from jaxseg.models.variables import initial_variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import flatten
from jaxseg.weights import files
from jaxseg.weights.importer import export_weights
from jaxseg.weights.mapping import IMAGENET
from tests.helpers import init_variables

MODEL = {"name": "segnet", "num_classes": 3, "width": 2, "depths": (1, 1)}
RAW = Normalization((0.0,), (1.0,))


@pytest.fixture(scope="module")
def variables():
    model = jaxseg.create_model(**MODEL)
    return init_variables(model, jnp.zeros((1, 8, 8, 3)))


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved") / "segnet"
    jaxseg.save(workdir, variables, model=MODEL, normalization=RAW)
    return workdir


def _initial(**changes):
    model = jaxseg.create_model(**MODEL | changes)
    return init_variables(model, jnp.zeros((1, 8, 8, 3)), seed=1)


def test_what_is_saved_is_loaded(saved, variables):
    model, loaded, metadata = jaxseg.load(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    assert metadata.class_names == ("0", "1", "2")
    assert metadata.palette == tuple(map(tuple, distinct_palette(3)))
    assert metadata.normalization == RAW
    assert metadata.step == 0
    assert model.apply(loaded, jnp.zeros((1, 9, 7, 3)), train=False).shape == (
        (1, 9, 7, 3)
    )


@pytest.mark.parametrize(
    "model",
    [
        {"name": "deconvnet", "width": 1, "hidden": 2},
        {"name": "unet_valid", "width": 1},
    ],
)
def test_models_that_take_certain_sizes_alone(model, tmp_path):
    model = model | {"num_classes": 2}
    variables = initial_variables(jaxseg.create_model(**model), jax.random.key(0))
    jaxseg.save(tmp_path / "w", variables, model=model, normalization=RAW)
    _, loaded, _ = jaxseg.load(tmp_path / "w")
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


def test_a_run_is_not_overwritten(saved, variables):
    with pytest.raises(ValueError, match="already contains a run"):
        jaxseg.save(saved, variables, model=MODEL, normalization=RAW)


def test_variables_of_another_model_are_not_saved(variables, tmp_path):
    for change, message in (
        ({"depths": (1, 2)}, "do not match segnet.*bn2"),
        ({"width": 3}, "but must be"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxseg.save(
                tmp_path / "w", variables, model=MODEL | change, normalization=RAW
            )
        assert not (tmp_path / "w").exists()


def test_a_new_head_on_another_run(saved, variables):
    wider = MODEL | {"num_classes": 5}
    initial = _initial(num_classes=5)
    with pytest.raises(ValueError, match=r"params/head/bias is .*, but must be"):
        PretrainedWeights(saved, wider).initialize(initial, RAW)
    pretrained = PretrainedWeights(saved, wider, head="new")
    started, new, unused = pretrained.initialize(initial, RAW)
    assert new == unused == ("params/head/bias", "params/head/kernel")
    given, mine, got = map(flatten, (variables, initial, started))
    for name, leaf in got.items():
        source = mine if name in new else given
        np.testing.assert_array_equal(leaf, source[name])


def test_a_start_from_a_file_is_one_from_the_workdir(saved, variables, tmp_path):
    path = tmp_path / "segnet.safetensors"
    export_weights(path, variables, jaxseg.load(saved)[2])
    one, other = (PretrainedWeights(p, MODEL) for p in (saved, path))
    assert one.normalization == other.normalization == RAW
    jax.tree.map(
        np.testing.assert_array_equal,
        one.initialize(_initial(), RAW)[0],
        other.initialize(_initial(), RAW)[0],
    )
    with pytest.raises(NormalizationMismatchError, match="was trained with"):
        other.initialize(_initial(), IMAGENET)


def test_a_file_is_read_once(saved, variables, tmp_path, monkeypatch):
    path = tmp_path / "segnet.safetensors"
    export_weights(path, variables, jaxseg.load(saved)[2])
    reads = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda path: reads.append(path) or read(path))
    pretrained = PretrainedWeights(path, MODEL)
    assert not reads
    pretrained.initialize(_initial(), pretrained.normalization)
    assert reads == [path]


def test_arrays_are_placed_in_the_order_of_the_model(saved, monkeypatch):
    """All processes place them together, so all must do it in the same order."""
    initial = _initial()
    placed = []
    place = jax.device_put

    def device_put(x, *args, **kwargs):
        placed.append(x.shape)
        return place(x, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", device_put)
    PretrainedWeights(saved, MODEL).initialize(initial, RAW)
    expected = [leaf.shape for leaf in flatten(initial).values()]
    assert placed[-len(expected) :] == expected  # loading places arrays too
