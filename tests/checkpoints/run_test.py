"""Workdirs that are made without a run, and runs that start from elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxseg
from jaxseg.checkpoints.run import normalization_of, start
from jaxseg.data.palette import distinct_palette
from jaxseg.models.variables import initial_variables
from jaxseg.training.step import create_state
from jaxseg.utils.trees import flatten
from jaxseg.weights.importer import export_weights
from jaxseg.weights.mapping import IMAGENET

MODEL = {"name": "segnet", "num_classes": 3, "width": 2, "depths": (1, 1)}
RAW = {"mean": [0.0], "std": [1.0]}


@pytest.fixture(scope="module")
def variables():
    model = jaxseg.create_model(**MODEL)
    return model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved") / "segnet"
    jaxseg.save(workdir, variables, model=MODEL, normalization=RAW)
    return workdir


def _state(**changes):
    model = jaxseg.create_model(**MODEL | changes)
    return create_state(model, optax.sgd(0.1), jax.random.key(1), (8, 8, 3))


def test_what_is_saved_is_loaded(saved, variables):
    model, loaded, metadata = jaxseg.load(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    assert metadata["class_names"] == ["0", "1", "2"]
    assert metadata["palette"] == [list(colour) for colour in distinct_palette(3)]
    assert metadata["normalization"] == RAW
    assert metadata["step"] == 0
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
    with pytest.raises(ValueError, match="holds a run already"):
        jaxseg.save(saved, variables, model=MODEL, normalization=RAW)


def test_variables_of_another_model_are_not_saved(variables, tmp_path):
    for change, message in (
        ({"depths": (1, 2)}, "not the variables of segnet.*bn2"),
        ({"width": 3}, "does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxseg.save(
                tmp_path / "w", variables, model=MODEL | change, normalization=RAW
            )
        assert not (tmp_path / "w").exists()


def _start(path, state, model=MODEL, normalization=RAW, **head):
    return start(path, state, model=model, normalization=normalization, **head)


def test_a_new_head_on_another_run(saved, variables):
    wider = MODEL | {"num_classes": 5}
    state = _state(num_classes=5)
    with pytest.raises(ValueError, match=r"params/head/bias: .* there, .* here"):
        _start(saved, state, wider)
    started, new, unused = _start(saved, state, wider, head="new")
    assert new == unused == ("params/head/bias", "params/head/kernel")
    given, mine, got = map(flatten, (variables, state.variables, started.variables))
    for name, leaf in got.items():
        source = mine if name in new else given
        np.testing.assert_array_equal(leaf, source[name])


def test_a_start_from_a_file_is_one_from_the_workdir(saved, variables, tmp_path):
    path = tmp_path / "segnet.safetensors"
    export_weights(
        path, variables, {"model": MODEL, "normalization": RAW, "channels": 3}
    )
    one, other = (_start(p, _state())[0].variables for p in (saved, path))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert normalization_of(saved, MODEL) == normalization_of(path, MODEL) == RAW
    with pytest.raises(ValueError, match=r"leave config\.normalization out"):
        _start(path, _state(), normalization=IMAGENET)
