"""Metadata survives JSON; what is not metadata is refused by name."""

import json
import math

import pytest

from jaxseg.metadata import FORMAT_VERSION, MetadataError, RunMetadata
from jaxseg.ops.image_normalization import Normalization
from tests.helpers import NAMES, NORMALIZATION, PALETTE, make_metadata

FULL = {
    "model": {"name": "segnet", "num_classes": 3, "encoder_kwargs": {"width": 4}},
    "channels": 2,
    "normalization": Normalization((1.0, 2.0), (3.0, 4.5)),
    "image_size": (16, 24),
    "data": {"dataset": "shapes", "root": "", "options": {"train_examples": 4}},
    "train_split": "fit",
    "val_split": "test",
    "eval_batch_size": 2,
    "absent": "zero",
    "config": {"train": {"steps": 3}, "stages": []},
    "imported": {"file": "net.pth", "new": [], "left_out": ["fc"]},
    "step": 7,
    "versions": {"jax": "0.10.2"},
    "git_commit": "4fea102",
}

VERSION_1 = {
    "model": {"name": "segnet", "num_classes": 3, "encoder_parts": {"width": 4}},
    "class_names": list(NAMES),
    "palette": [list(color) for color in PALETTE],
    "normalization": {"mean": [120.0], "std": [60.0]},
    "eval": {"batch_size": 4, "absent": "zero"},
    "config": {
        "model": {"name": "segnet", "parts": {"skip_parts": {"channels": 8}}},
        "loss": {"parts": 2},
        "seed": 0,
    },
}
"""As jaxseg 0.1 wrote it, without a version."""


def through_text(metadata):
    """JSON values of metadata, as they are read from a file."""
    return json.loads(json.dumps(metadata.to_json()))


@pytest.mark.parametrize("changes", [{}, FULL])
def test_json_gives_the_metadata_back(changes):
    metadata = make_metadata(**changes)
    content = through_text(metadata)
    assert content["format_version"] == FORMAT_VERSION
    assert RunMetadata.from_json(content) == metadata


def test_lists_become_tuples():
    metadata = make_metadata(
        class_names=list(NAMES), palette=[list(c) for c in PALETTE], image_size=[16, 24]
    )
    assert metadata == make_metadata(image_size=(16, 24))
    assert metadata.palette == PALETTE and metadata.num_classes == 3


def test_a_changed_copy_is_checked():
    metadata = make_metadata()
    assert metadata.replace(step=5).step == 5 and metadata.step is None
    with pytest.raises(MetadataError, match="step is -1"):
        metadata.replace(step=-1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", {}, "create_model"),
        ("model", {"name": 3}, "create_model"),
        ("model", "segnet", "create_model"),
        ("class_names", (), "1 to 255 names"),
        ("class_names", tuple(map(str, range(256))), "1 to 255 names"),
        ("class_names", "abc", "a tuple of 1 to 255 names"),
        ("class_names", (0, 1, 2), "a tuple of 1 to 255 names"),
        ("palette", None, "RGB colors"),
        ("palette", ((0, 0),) * 3, "RGB colors"),
        ("palette", ((0, 0, 256),) * 3, "RGB colors"),
        ("palette", ((0, 0, 0.5),) * 3, "RGB colors"),
        ("palette", ((0, 0, 0),) * 2, "2 colors for 3 classes"),
        ("normalization", None, "a Normalization"),
        ("normalization", Normalization((1.0, 2.0), (1.0,)), "of the 3 channels"),
        ("channels", 0, "a positive integer"),
        ("channels", True, "a positive integer"),
        ("channels", 3.0, "a positive integer"),
        ("image_size", (16,), r"\(height, width\) in pixels"),
        ("image_size", (16, 0), r"\(height, width\) in pixels"),
        ("image_size", 16, r"\(height, width\) in pixels"),
        ("image_size", (16, 10**9), "up to 16384 each"),
        ("channels", 10**9, "up to 1024"),
        ("eval_batch_size", 10**9, "up to 65536"),
        ("step", 10**400, "a step, or None"),
        ("data", None, "create_source"),
        ("train_split", None, "a name"),
        ("val_split", 1, "a name"),
        ("eval_batch_size", 0, "a positive integer"),
        ("absent", "ignore", "'exclude' or 'zero'"),
        ("config", [], "a mapping, or None"),
        ("imported", "net.pth", "a mapping, or None"),
        ("step", True, "a step, or None"),
        ("step", 1.5, "a step, or None"),
        ("versions", None, "versions by name"),
        ("git_commit", 4, "a commit, or None"),
    ],
)
def test_invalid_values_name_their_field(field, value, message):
    with pytest.raises(MetadataError, match=f"^{field} .*{message}"):
        make_metadata(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", {"depth": 10**9}, r"^model.depth is 1000000000; .* at most 8192"),
        ("model", {"depths": [1, 10**400]}, r"^model.depths\[1\] is too large"),
        (
            "model",
            {"encoder_kwargs": {"width": -(10**6)}},
            "model.encoder_kwargs.width",
        ),
        ("model", {"depths": [8000] * 9}, "sum of all integers of the model is 72000"),
        ("model", {"dropout": math.nan}, "model.dropout is nan; it must be finite"),
        ("data", {"train_examples": 10**9}, "data.train_examples is 1000000000"),
        ("data", {"image_size": [2**17, 2**17]}, "product of data.image_size"),
    ],
)
def test_numbers_are_bounded_before_anything_is_built(field, value, message):
    with pytest.raises(MetadataError, match=message):
        make_metadata(**{field: {"name": "net"} | value})


def test_names_and_the_model_must_have_equally_many_classes():
    with pytest.raises(MetadataError, match=r"3 names, but .* num_classes=2"):
        make_metadata(model={"name": "net", "num_classes": 2})


def test_a_long_value_is_abbreviated():
    with pytest.raises(MetadataError) as error:
        make_metadata(absent="x" * 5000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "'colour' is unknown"),
        ({"palette": "red"}, "palette is 'red'"),
        ({"normalization": {"mean": [1]}}, "normalization is"),
        ({"normalization": {"mean": "123", "std": [1]}}, "normalization is"),
        ({"normalization": [1, 2]}, "normalization is"),
        ({"normalization": {"mean": 1, "std": 1}}, "normalization is"),
        ({"normalization": {"mean": ["1"], "std": [1]}}, "mean is .* finite numbers"),
        ({"normalization": {"mean": [0.0], "std": [0.0]}}, "std is .* positive"),
        ({"normalization": {"mean": [0.0], "std": [-1]}}, "std is .* positive"),
        ({"normalization": {"mean": [0.0], "std": [1e-50]}}, "std is .* positive"),
        ({"normalization": {"mean": [0.0], "std": [math.nan]}}, "std is .* positive"),
        ({"normalization": {"mean": [math.inf], "std": [1]}}, "mean is .* finite"),
        ({"normalization": {"mean": [10**400], "std": [1]}}, "mean is .* finite"),
    ],
)
def test_damaged_content_names_its_source(change, message):
    content = through_text(make_metadata()) | change
    with pytest.raises(MetadataError, match=f"^w/file is damaged: .*{message}"):
        RunMetadata.from_json(content, "w/file")


@pytest.mark.parametrize("key", ["model", "class_names", "palette", "normalization"])
@pytest.mark.parametrize("content", [through_text(make_metadata()), VERSION_1])
def test_missing_keys_are_named(content, key):
    content = {k: v for k, v in content.items() if k != key}
    with pytest.raises(MetadataError, match=f"'{key}' is missing"):
        RunMetadata.from_json(content)


@pytest.mark.parametrize("content", [None, [], "text", 3, True])
def test_other_json_is_not_metadata(content):
    with pytest.raises(MetadataError, match="not a JSON object"):
        RunMetadata.from_json(content)


@pytest.mark.parametrize(
    "field", ["class_names", "image_size", "absent", "model", "data"]
)
def test_deep_nesting_is_an_error_of_the_metadata(field):
    value = []
    for _ in range(100_000):
        value = [value]
    if field in ("model", "data"):
        value = {"name": "net", "deep": value}
    content = through_text(make_metadata()) | {field: value}
    with pytest.raises(MetadataError, match="nested too deeply"):
        RunMetadata.from_json(content)


def test_a_newer_version_is_refused():
    content = through_text(make_metadata()) | {"format_version": FORMAT_VERSION + 1}
    with pytest.raises(MetadataError, match="newer jaxseg"):
        RunMetadata.from_json(content)


@pytest.mark.parametrize("version", [0, -1, "2", None, True, 2.0, []])
def test_a_version_is_a_positive_integer(version):
    content = through_text(make_metadata()) | {"format_version": version}
    with pytest.raises(MetadataError, match="damaged: invalid format_version"):
        RunMetadata.from_json(content)


def test_version_1_is_migrated():
    metadata = RunMetadata.from_json(VERSION_1)
    assert metadata == make_metadata(
        model={"name": "segnet", "num_classes": 3, "encoder_kwargs": {"width": 4}},
        normalization=NORMALIZATION,
        eval_batch_size=4,
        absent="zero",
        config={
            "model": {"name": "segnet", "kwargs": {"skip_kwargs": {"channels": 8}}},
            "loss": {"chunks": 2},
            "seed": 0,
        },
    )
    assert RunMetadata.from_json(through_text(metadata)) == metadata
    assert "parts" in VERSION_1["config"]["loss"]  # what is given is not changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval", None, "eval must be a mapping"),
        ("eval", {"absent": 3}, "absent is 3"),
        ("model", [], r"model is \[\]"),
        ("config", [1], r"config is \[1\]"),
    ],
)
def test_damaged_content_of_version_1_is_named(key, value, message):
    with pytest.raises(MetadataError, match=message):
        RunMetadata.from_json(VERSION_1 | {key: value})


@pytest.mark.parametrize("section", ["model", "loss"])
@pytest.mark.parametrize("value", [None, 3, {"parts": [1]}])
def test_configs_of_version_1_may_hold_anything(section, value):
    metadata = RunMetadata.from_json(VERSION_1 | {"config": {section: value}})
    renamed = {"model": "kwargs", "loss": "chunks"}[section]
    expected = {renamed: [1]} if isinstance(value, dict) else value
    assert metadata.config == {section: expected}


def test_other_keys_of_version_1_are_left_out():
    """`jaxseg.save` of 0.1 stored whatever it was given."""
    metadata = RunMetadata.from_json(VERSION_1 | {"license": "CC0", "notes": [1]})
    assert metadata == RunMetadata.from_json(VERSION_1)
