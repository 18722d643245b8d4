"""The record of a run: what resuming keeps, and what is written."""

import json
import math
import os

import numpy as np
import pytest

from jaxseg.training.metric_writer import MetricWriter, read_metrics


def _lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_have_step_and_values_and_nan_is_null(tmp_path):
    with MetricWriter(tmp_path, start=0, steps=10) as writer:
        writer.train(5, images=8, loss=0.5)
        writer.write(5, {"val_iou": {"road": np.float32(0.25), "car": math.nan}})
    train, evaluation = _lines(tmp_path)
    assert train["step"] == 5 and train["loss"] == 0.5
    assert train["images_per_second"] > 0
    assert evaluation == {"step": 5, "val_iou": {"road": 0.25, "car": None}}


def test_resuming_drops_the_steps_that_come_again(tmp_path):
    with MetricWriter(tmp_path, start=0, steps=10) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": step})
    # A run that is killed may leave half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricWriter(tmp_path, start=4, steps=10) as writer:
        writer.write(5, {"loss": 5})
    assert [x["step"] for x in _lines(tmp_path)] == [2, 4, 5]


def test_resuming_drops_an_evaluation_that_comes_again(tmp_path):
    with MetricWriter(tmp_path, start=0, steps=10) as writer:
        writer.write(2, {"val_miou": 0.1})
        writer.write(4, {"loss": 1})
        writer.write(4, {"val_miou": 0.2})
    with MetricWriter(tmp_path, start=4, steps=10, evaluates=True) as writer:
        writer.write(4, {"val_miou": 0.2})
    assert _lines(tmp_path) == [
        {"step": 2, "val_miou": 0.1},
        {"step": 4, "loss": 1},
        {"step": 4, "val_miou": 0.2},
    ]


def test_plain_lines_say_how_far_and_how_fast(tmp_path, capsys):
    with MetricWriter(tmp_path, start=0, steps=10) as writer:
        writer.train(5, images=8, loss=0.5)
    out = capsys.readouterr().out
    assert "step 5/10" in out and "loss 0.5" in out and "images_per_second" in out
    assert "left 0:00" in out


def test_a_log_that_ends_in_the_middle_of_a_line_is_read_up_to_it(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2}]


ODD = [
    "null",
    "[]",
    "3",
    "{}",
    '{"step": "4"}',
    '{"step": null}',
    '{"step": true}',
    '{"step": -1}',
    '{"step": 100000000000000000}',
    '{"step": 1.5}',
    '{"step": 1, "step": 2}',
    "[" * 100_000,
    '{"step": ' + "9" * 5000 + "}",
    "\u2028",
    "",
]


def test_odd_lines_are_left_out_and_kept_in_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = ['{"step": 1, "loss": 2}', '{"step": 3, "loss": 4}', '{"step": 5}']
    path.write_text("\n".join([good[0], *ODD, good[1], good[2], '{"st']))
    with path.open("ab") as file:
        file.write(b"\xff")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 5]
    with MetricWriter(tmp_path, start=3, steps=10) as writer:
        writer.write(4, {"loss": 5})
    lines = path.read_text().split("\n")
    assert lines[:-2] == [good[0], *ODD, good[1]]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4]


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "link to a device"])
def test_only_a_regular_file_is_written_to(tmp_path, kind):
    path, target = tmp_path / "run" / "metrics.jsonl", tmp_path / "target"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "link to nothing" else "/dev/zero")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: not a regular file"):
        MetricWriter(path.parent, start=0, steps=10)
    assert not target.exists()
