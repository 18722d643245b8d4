"""Comparing evaluations of three images of two classes, and refusing what differs."""

import io
import json
import zipfile

import numpy as np
import pytest

from jaxseg import cli
from jaxseg.inference.image_metrics import ImageMetrics, load_counts
from jaxseg.metrics import paired_bootstrap

NAMES = ("road", "sky")
LABEL = np.array([[0, 0, 0, 1]], np.uint8)


@pytest.fixture
def evaluated(tmp_path):
    """Makes a workdir's report.npz of predictions by the names of their images."""

    def make(name, predictions, *, labels=(), classes=NAMES, boundary=False):
        names = list(predictions)
        card = ImageMetrics(classes, names.__getitem__, boundary=boundary)
        for i, (image, prediction) in enumerate(predictions.items()):
            label = dict(labels).get(image, LABEL)
            card.add(i, np.array([prediction], np.uint8), label)
        (tmp_path / name).mkdir()
        card.save(tmp_path / name / "report.npz")
        return tmp_path / name

    return make


def compare(*arguments):
    return cli.main(["compare", *map(str, arguments)])


RIGHT, WRONG, HALF = (0, 0, 0, 1), (1, 1, 1, 0), (0, 0, 1, 1)


def test_differences_and_intervals(evaluated, tmp_path, capsys):
    # Pooled over the images, a: road 5 of 10, sky 2 of 7; b: road 8 of 9, sky 3 of 4.
    a = evaluated("a", {"x": RIGHT, "y": HALF, "z": WRONG})
    b = evaluated("b", {"x": RIGHT, "y": HALF, "z": RIGHT})
    output = tmp_path / "new" / "difference.json"
    assert compare(a, b, a, "--output", output) == 0

    result = json.loads(output.read_text())
    assert result["first"] == str(a)
    to_b, to_a = result["compared"]
    assert (to_b["run"], to_a["run"]) == (str(b), str(a))
    assert list(to_b["iou"]) == ["road", "sky", "mean"]
    first, second = {"road": 5 / 10, "sky": 2 / 7}, {"road": 8 / 9, "sky": 3 / 4}
    first["mean"], second["mean"] = (np.mean(list(x.values())) for x in (first, second))
    mean, classes = paired_bootstrap(
        load_counts(a / "report.npz")[1]["iou"],
        load_counts(b / "report.npz")[1]["iou"],
        NAMES,
    )
    for name, row in to_b["iou"].items():
        assert row["first"] == pytest.approx(first[name])
        assert row["second"] == pytest.approx(second[name])
        assert row["difference"] == pytest.approx(second[name] - first[name])
        interval = mean if name == "mean" else classes[name]
        assert (row["low"], row["high"]) == (interval.low, interval.high)
        same = to_a["iou"][name]
        assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)

    printed = capsys.readouterr().out
    assert "road    50.0    88.9       +38.9  [" in printed
    assert f"A  {a}\nB  {b}\n" in printed
    assert "over 3 images" in printed
    assert "boundary" not in printed


def test_a_star_marks_what_leaves_out_zero(evaluated, capsys):
    a = evaluated("a", {i: (0, 0, 1, 0) for i in "xyz"})
    b = evaluated("b", {i: RIGHT for i in "xyz"})
    assert compare(a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    stars = [line.split()[0] for line in lines if line.endswith("] *")]
    assert stars == ["road", "sky", "mean"]
    assert compare(a, a) == 0
    assert "] *" not in capsys.readouterr().out


def test_boundaries_are_compared_where_all_have_them(evaluated, capsys):
    predictions = {"x": RIGHT, "y": HALF}
    a = evaluated("a", predictions, boundary=True)
    b = evaluated("b", predictions, boundary=True)
    plain = evaluated("plain", predictions)
    assert compare(a, b) == 0
    assert "\nboundary F1\n" in capsys.readouterr().out
    assert compare(a, b, plain) == 0
    assert "boundary" not in capsys.readouterr().out


def test_the_order_of_the_records_does_not_matter(evaluated, capsys):
    a = evaluated(
        "a", {"x": RIGHT, "y": HALF, "z": WRONG}, labels={"y": LABEL[:, ::-1]}
    )
    b = evaluated(
        "b", {"z": WRONG, "x": RIGHT, "y": HALF}, labels={"y": LABEL[:, ::-1]}
    )
    assert compare(a, b) == 0
    assert "+0.0  [ +0.0,  +0.0]" in capsys.readouterr().out


def test_files_stand_for_runs(evaluated, tmp_path):
    a = evaluated("a", {"x": RIGHT, "y": HALF})
    b = evaluated("b", {"x": RIGHT, "y": WRONG})
    (b / "report.json").touch()
    assert compare(a / "report.npz", b / "report.json") == 0


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {"predictions": {"x": RIGHT}},
            "on 2 and 1 images, of which y is only in {a}. Evaluate",
        ),
        (
            {"predictions": {"x": RIGHT, "q": HALF}},
            "on 2 and 2 images, of which q is only in {b}. Evaluate",
        ),
        (
            {"predictions": {"x": RIGHT, "y": HALF}, "labels": {"y": 1 - LABEL}},
            "the labels of 1 images differ, y among them.",
        ),
        (
            {"predictions": {"x": RIGHT, "y": HALF}, "classes": ("road", "tree")},
            "their classes are road, sky and road, tree.",
        ),
    ],
)
def test_other_data_are_refused_by_name(evaluated, capsys, other, message):
    a, b = evaluated("a", {"x": RIGHT, "y": HALF}), evaluated("b", **other)
    assert compare(a, b) == 1
    error = capsys.readouterr().err
    assert f"error: {a} and {b} cannot be compared: " in error
    assert message.format(a=a, b=b) in error


def test_what_is_missing_is_said(evaluated, tmp_path, capsys):
    a = evaluated("a", {"x": RIGHT})
    (tmp_path / "fresh").mkdir()
    (tmp_path / "old.json").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "bad.npz").write_bytes(b"PK")
    messages = {
        "fresh": f"Run `jaxseg evaluate --workdir {tmp_path}/fresh`.",
        "nowhere": f"{tmp_path}/nowhere does not exist",
        "old.json": f"Run `jaxseg evaluate --output {tmp_path}/old.json`.",
        "notes.txt": "is not a workdir",
        "bad.npz": "is damaged",
    }
    for name, message in messages.items():
        assert compare(a, tmp_path / name) == 1
        assert message in capsys.readouterr().err
    assert compare(a) == 1
    assert "at least two runs" in capsys.readouterr().err
    assert compare(a, a, "--output", tmp_path) == 1
    assert "is a folder" in capsys.readouterr().err


def _npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


ABOUT = {"class_names": list(NAMES), "images": ["x"]}
GOOD = {
    "about": np.array(json.dumps(ABOUT)),
    "index": np.arange(1),
    "iou": np.ones((1, 2, 3), np.int64),
}
DAMAGED = {
    "empty": b"",
    "no zip": b"PK\3\4" + bytes(90),
    "no about": _npz(iou=GOOD["iou"], index=GOOD["index"]),
    "no JSON": _npz(**GOOD | {"about": np.array("{")}),
    "null": _npz(**GOOD | {"about": np.array("null")}),
    "nested": _npz(**GOOD | {"about": np.array("[" * 100_000)}),
    "no names": _npz(**GOOD | {"about": np.array("{}")}),
    "names of numbers": _npz(
        **GOOD | {"about": np.array(json.dumps(ABOUT | {"class_names": [1, 2]}))}
    ),
    "more images": _npz(
        **GOOD | {"about": np.array(json.dumps(ABOUT | {"images": ["x", "y"]}))}
    ),
    "more classes": _npz(**GOOD | {"iou": np.ones((1, 3, 3), np.int64)}),
    "negative": _npz(**GOOD | {"iou": -np.ones((1, 2, 3), np.int64)}),
    "floats": _npz(**GOOD | {"iou": np.full((1, 2, 3), np.nan)}),
    "objects": _npz(**GOOD | {"iou": np.array([None])}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_counts_name_their_file(content, tmp_path, capsys):
    path = tmp_path / "report.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"report\.npz is damaged"):
        load_counts(path)
    assert compare(path, path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is damaged")
    assert len(error.splitlines()) == 1


def test_counts_need_no_more_memory_than_they_have_numbers(tmp_path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1, 2, %d)}\n" % 2**40
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name, array in GOOD.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
        lie = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
        archive.writestr("boundary.npy", lie)
    with pytest.raises(ValueError, match=r"boundary.npy ends early"):
        load_counts(tmp_path / "x.npz")
