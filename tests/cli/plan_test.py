"""`jaxseg plan` as a user calls it, and what it says to what it cannot do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import default
from jaxseg import cli
from jaxseg.plan import planner

ROOT = Path(default.__file__).parent.parent
SHAPES = str(ROOT / "configs" / "shapes.py")
STAGED = str(ROOT / "configs" / "fcn_vgg16_camvid_staged.py")
SIZE = ("--classes", "3", "--image-size", "16x16")


@pytest.fixture(autouse=True)
def started():
    """JAX has its four devices before a plan could ask for others."""
    assert len(jax.devices()) == 4


@pytest.fixture
def planned(monkeypatch):
    """What would have been compiled: (config, K, image shape) of each step."""
    seen = []

    def compile_step(config, topology, num_classes, image_shape, limit):
        seen.append((config, num_classes, image_shape))
        return dict.fromkeys(planner.MEASURES) | {"compile_seconds": 0.0}

    monkeypatch.setattr(planner, "compile_step", compile_step)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return seen


def run(*arguments, config=SHAPES, topology="cpu:4"):
    return cli.main(["plan", "--config", config, "--topology", topology, *arguments])


def test_in_a_process_of_its_own(tmp_path):
    """Five fake devices from outside the repository, and everything written down."""
    output = tmp_path / "plan.json"
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import sys; from jaxseg.cli import main; main()"),
            *("plan", "--config", SHAPES, "--topology", "cpu:5", *SIZE),
            *("--config.model.kwargs={'width': 2, 'depths': (1,)}",),
            *("--config.train.batch_size=10", "--memory", "1", "--no-search"),
            *("--output", str(output)),
        ],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "compiling the step for cpu:5" in done.stderr
    plan = json.loads(output.read_text())
    assert plan["topology"]["devices"] == 5 and plan["step"]["fits"] is True
    assert plan["model"]["width"] == 2 and plan["batch_size"] == 10
    assert plan["config"][0] == SHAPES and plan["jax"] == jax.__version__
    assert "of 1.00 GiB: fits" in done.stdout and "all-reduce" in done.stdout
    assert list(tmp_path.iterdir()) == [output]


def test_config_keys_are_set_as_for_train(planned):
    assert run(*SIZE, "--config.train.batch_size", "64", "--config.model.remat") == 0
    ((config, classes, shape),) = planned
    assert config.train.batch_size == 64 and config.model.remat is True
    assert classes == 3 and shape == (16, 16, 3)


def test_a_step_that_does_not_fit_has_a_status_of_its_own(planned, monkeypatch):
    measured = {"compile_seconds": 0.0, "fits": False, "bytes": 2**40}
    monkeypatch.setattr(
        planner, "compile_step", lambda *_: dict.fromkeys(planner.MEASURES) | measured
    )
    assert run(*SIZE, "--no-search", "--memory", "1") == 3


def test_the_mesh(planned):
    assert run(*SIZE, "--mesh", "data=2,space=2") == 0
    ((config, *_),) = planned
    assert config.parallel.data == 2 and config.parallel.space == 2


def test_crops_are_what_is_trained_on(planned):
    crop = "--config.augment.crop_px=(48, 32)"
    assert run("--classes", "3", crop) == 0
    assert planned[0][2] == (48, 32, 3)
    assert run(*SIZE, crop) == 1
    assert run("--classes", "3", "--image-size", "48x32", crop) == 0


def test_a_stage(planned, capsys):
    assert run(*SIZE, config=STAGED) == 1
    assert "one of fcn32s, fcn16s, fcn8s" in capsys.readouterr().err
    assert run(*SIZE, "--stage", "fcn8s", config=STAGED) == 0
    assert planned[0][0].model.name == "fcn8s"


def test_classes_and_sizes_of_the_data(planned, tmp_path):
    options = "--config.data.options={'train_examples': 1, 'image_size': (32, 48)}"
    assert run(f"--config.data.prepared_dir={tmp_path}", options) == 0
    ((_, classes, shape),) = planned
    assert classes == 6 and shape == (32, 48, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.batchsize=3"], "the config has no key"),
        (["--config.train.batch_size=x"], "batch_size"),
        (["--config.train.batch_size=6"], "use 4 or 8"),
        (["surplus"], "Unexpected arguments: surplus"),
        (["--mesh", "data=8"], "does not fit the 4 devices"),
        (["--config.parallel.backend=pmap"], "pmap cannot be planned"),
    ],
)
def test_what_cannot_be_planned(arguments, message, capsys):
    assert run(*SIZE, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert message in error


def test_missing_data_say_how_to_do_without(capsys, tmp_path):
    missing = f"--config.data.root={tmp_path}/none", "--config.data.dataset=folder"
    assert run(*missing) == 1
    assert "give --classes K and --image-size HxW" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--mesh", "model=2"], ["--mesh", "data=x"], ["--image-size", "16"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        run(*SIZE, *arguments)
    assert "error: " in capsys.readouterr().err


def test_other_commands_take_no_config_keys(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--workdir", "x", "--config.train.steps=3"])
    assert "unrecognized arguments: --config.train.steps=3" in capsys.readouterr().err


def test_unreadable_config_names_the_file(capsys):
    assert run(*SIZE, config="nowhere.py") == 1
    assert "nowhere.py" in capsys.readouterr().err


def test_nothing_is_compiled_for_an_output_that_cannot_be_written(planned, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(*SIZE, "--output", str(tmp_path / "file" / "plan.json")) == 1
    assert not planned
