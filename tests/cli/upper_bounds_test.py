"""The command against a count by hand, on masks whose coarse form is known."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg import cli

# Cells of 2 x 2: the left one has three of class 0 and one of class 1, the next two are
# of class 1, the right one void but for one pixel.
LABEL = np.array([[0, 0, 1, 1, 1, 1, 255, 255], [0, 1, 1, 1, 1, 1, 0, 255]], np.uint8)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for kind, array in (("images", np.zeros((2, 8, 3), np.uint8)), ("masks", LABEL)):
        (root / "test" / kind).mkdir(parents=True)
        Image.fromarray(array).save(root / "test" / kind / "a.png")
    classes = json.dumps({"classes": ["ground", "tree", "unicorn"], "void": 255})
    (root / "classes.json").write_text(classes)
    return root


def run(data, *more):
    args = [
        "--dataset=folder",
        f"--data-root={data}",
        f"--prepared-dir={data.parent}/kept",
    ]
    return cli.main(["upper-bounds", *args, *map(str, more)])


def test_scores_of_coarse_masks_are_those_counted_by_hand(data, tmp_path, capsys):
    output = tmp_path / "new" / "bounds.json"
    args = ("--split=test", "--factors", 2, 1, "--output", output)
    assert run(data, *args) == 0
    scores = json.loads(output.read_text())
    assert list(scores) == ["2", "1"]
    # Of 13 valid pixels one, of class 1, takes class 0 from its cell.
    assert scores["2"]["iou"] == {"ground": 4 / 5, "tree": 8 / 9, "unicorn": None}
    assert scores["2"]["miou"] == pytest.approx((4 / 5 + 8 / 9) / 2)
    assert scores["2"]["pixel_accuracy"] == pytest.approx(12 / 13)
    assert scores["1"]["miou"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "folder: 1 label maps of test, nearest upsampling"
    assert [line.split() for line in printed[3:5]] == [
        ["2", "84.4", "92.3"],
        ["1", "100.0", "100.0"],
    ]


def test_all_of_the_papers_factors_are_there_unasked(data, capsys):
    assert run(data, "--split=test", "--upsample=bilinear") == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    factors = [int(line.split()[0]) for line in lines]
    assert factors == [128, 64, 32, 16, 8, 4, 2, 1]
    # A cell nearly void has little to say against its neighbor, and loses its pixel:
    # 11 of 13 are right.
    assert lines[-2].split()[2] == "84.6"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--split=val"], "has no split 'val'; it has test"),
        (["--split=test", "--factors", "0"], "factor must be at least 1"),
        (["--split=test", "--options", '{"width": 3}'], "no option width; known: chan"),
        (["--split=test", "--output", "/"], "/ is a folder"),
    ],
)
def test_what_cannot_be_done_is_said(data, capsys, args, message):
    assert run(data, *args) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", ["5", "channels=1"])
def test_options_are_a_json_object(data, capsys, options):
    with pytest.raises(SystemExit):
        run(data, "--options", options)
    assert f"'{options}' is not a JSON object" in capsys.readouterr().err
