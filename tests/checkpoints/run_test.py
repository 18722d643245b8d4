"""Workdirs that are made without a run, and runs that start from elsewhere."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.checkpoints.manager import CorruptCheckpointError
from jaxseg.checkpoints.run import (
    ClassNamesMismatchError,
    NormalizationMismatchError,
    PretrainedWeights,
)
from jaxseg.data.palette import distinct_palette
from jaxseg.metadata import MetadataError
from jaxseg.models.variables import initial_variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import flatten, unflatten
from jaxseg.weights import files
from jaxseg.weights.importer import export_weights
from jaxseg.weights.mapping import IMAGENET, WeightsError
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


def _changed(variables, path, value):
    leaves = dict(flatten(variables))
    leaves[path] = np.asarray(leaves[path]).copy()
    leaves[path].flat[0] = value
    return unflatten(leaves)


BAD_VALUES = [
    ("params/head/bias", np.nan, "NaN or infinite: params/head/bias"),
    ("params/head/kernel", -np.inf, "NaN or infinite: params/head/kernel"),
    (
        "batch_stats/encoder/stage1/bn1/var",
        -1.0,
        "negative variances: batch_stats/encoder/stage1/bn1/var",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_VALUES)
def test_invalid_values_are_neither_saved_nor_loaded(
    variables, path, value, message, tmp_path, monkeypatch
):
    bad = _changed(variables, path, value)
    with pytest.raises(WeightsError, match=message):
        jaxseg.save(tmp_path / "w", bad, model=MODEL, normalization=RAW)
    assert not (tmp_path / "w").exists()
    monkeypatch.setattr("jaxseg.checkpoints.run._check_variables", lambda *_: None)
    jaxseg.save(tmp_path / "w", bad, model=MODEL, normalization=RAW)
    with pytest.raises(WeightsError, match=rf"checkpoints/0 .*{message}"):
        jaxseg.load(tmp_path / "w")


@pytest.fixture
def copied(saved, tmp_path):
    """A workdir to damage."""
    shutil.copytree(saved, tmp_path / "w")
    return tmp_path / "w"


def _change_model(workdir, **changes):
    content = json.loads((workdir / "metadata.json").read_text())
    content["model"] |= changes
    (workdir / "metadata.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [10**9]}, r"model.depths\[0\] is 1000000000"),
        ({"depths": [8000, 8000]}, "cannot be built: .*more than 2.* layers"),
        ({"width": 8000}, "does not belong to the model .*, and must be"),
        ({"depths": [1, 2]}, "does not belong to the model"),
        ({"width": "wide"}, "cannot be built"),
        ({"depths": 3}, "cannot be built"),
        ({"nonsense": 3}, "cannot be built: segnet has no argument 'nonsense'"),
    ],
)
def test_a_model_that_is_not_the_checkpoints_is_not_built(copied, changes, message):
    _change_model(copied, **changes)
    with pytest.raises(ValueError, match=message):
        jaxseg.load(copied)


def test_a_checkpoint_declares_no_more_than_it_holds(copied, monkeypatch):
    monkeypatch.setattr("jaxseg.weights.untrusted._FREE", 10)
    monkeypatch.setattr("jaxseg.weights.untrusted._RATIO", 0)
    with pytest.raises(CorruptCheckpointError, match="declares far more"):
        jaxseg.load(copied)


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"miou": "1"}', "[" * 10**5])
def test_a_damaged_score_names_its_file(copied, content):
    file = copied / "checkpoints/0/metrics/metrics"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"metrics/metrics is damaged"):
        jaxseg.load(copied)
    assert jaxseg.load(copied, "latest")[2].step == 0
    file.write_text('{"miou": NaN}')
    assert jaxseg.load(copied)[2].step == 0


@pytest.mark.parametrize(
    "content", ["null", "[]", "{", "{}", "[" * 10**5, '{"model": 1, "model": 2}', ""]
)
def test_damaged_metadata_names_its_file(copied, content):
    (copied / "metadata.json").write_text(content)
    with pytest.raises(MetadataError, match=r"metadata\.json is damaged"):
        jaxseg.load(copied)


@pytest.mark.parametrize("damage", ["null", "[]", "{}", "[" * 10**5, "pipe"])
@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "_sharding"])
def test_damaged_files_of_a_checkpoint_do_not_pass_unnoticed(copied, name, damage):
    """An error that names the checkpoint, or the right arrays if Orbax needs no more."""
    files = list((copied / "checkpoints/0").rglob(name))
    assert files
    for file in files:
        if damage == "pipe":
            file.unlink()
            os.mkfifo(file)
        else:
            file.write_text(damage)
    try:
        variables = jaxseg.load(copied)[1]
    except CorruptCheckpointError as error:
        assert "checkpoints/0" in str(error)
    else:
        assert name != "_METADATA" and damage != "pipe"
        assert len(flatten(variables)) > 4


def test_odd_names_are_no_steps(copied):
    for name in ("9" * 5000)[:200], "-1", "1e3", "²":
        (copied / "checkpoints" / name).mkdir()
    assert jaxseg.load(copied, "latest")[2].step == 0


def test_more_classes_than_label_maps_hold_are_refused_everywhere(tmp_path, copied):
    many = MODEL | {"num_classes": 256}
    with pytest.raises(ValueError, match="256 classes do not fit into label maps"):
        jaxseg.create_model(**many)
    with pytest.raises(ValueError, match="256 classes do not fit into label maps"):
        jaxseg.save(tmp_path / "new", {}, model=many, normalization=RAW)
    assert not (tmp_path / "new").exists()
    _change_model(copied, num_classes=256)
    content = json.loads((copied / "metadata.json").read_text())
    content["class_names"] = list(map(str, range(256)))
    content["palette"] = [[0, 0, 0]] * 256
    (copied / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(MetadataError, match="1 to 255 names"):
        jaxseg.load(copied)


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


@pytest.mark.parametrize(
    "names, difference",
    [(["b", "a", "c"], "class 0 is 'a', not 'b'"), (["a", "b", "x"], "not 'x'")],
)
def test_a_head_is_not_reused_for_other_classes(tmp_path, variables, names, difference):
    named = {"normalization": RAW, "class_names": ["a", "b", "c"]}
    jaxseg.save(tmp_path / "named", variables, model=MODEL, **named)
    workdir = tmp_path / "named"
    with pytest.raises(ClassNamesMismatchError, match=difference):
        PretrainedWeights(workdir, MODEL, class_names=names).initialize(_initial(), RAW)
    for head, given in (("new", names), ("keep", named["class_names"])):
        PretrainedWeights(workdir, MODEL, head, given).initialize(_initial(), RAW)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["class_0", "class_1", "class_2"]])
def test_classes_without_names_are_not_compared(saved, names):
    pretrained = PretrainedWeights(saved, MODEL, class_names=names)
    variables, missing, unused = pretrained.initialize(_initial(), RAW)
    assert missing == unused == ()
    jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"]["head"],
        jaxseg.load(saved)[1]["params"]["head"],
    )


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
