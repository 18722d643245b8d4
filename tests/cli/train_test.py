"""`jaxseg train` and `jaxseg configs`, and how they read config files."""

import json
import sys
from pathlib import Path

import pytest

from jaxseg import cli
from jaxseg.cli.config_file import read_config, shipped_configs
from tests.helpers import JAXSEG, ROOT, run_python

OWN = """
from jaxseg.training import default_config

def get_config(steps="3"):
    config = default_config()
    config.train.steps = int(steps)
    {line}
    return config
"""


def write(path: Path, line: str = "pass") -> str:
    path.write_text(OWN.format(line=line))
    return str(path)


def test_a_config_with_keys_set(tmp_path):
    path = write(tmp_path / "own.py")
    config = read_config(
        f"{path}:7",
        ["--config.train.batch_size", "2", "--config.model.kwargs={'width': 4}"],
    )
    assert config.is_locked and config.train.steps == 7
    assert config.train.batch_size == 2 and config.model.kwargs.width == 4


def test_a_config_imports_its_neighbors_first_and_shipped_ones(tmp_path, monkeypatch):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "own"
    elsewhere.mkdir()
    folder.mkdir()
    monkeypatch.chdir(elsewhere)
    before = list(sys.path)
    # A name that is also in the standard library, and one in the current directory.
    write(folder / "this.py", "config.seed = 5")
    write(elsewhere / "helper_here.py", "config.seed = 6")
    (folder / "main.py").write_text(
        "import this, helper_here, shapes\n"
        "def get_config():\n"
        "    config = shapes.get_config()\n"
        "    config.seed = this.get_config().seed + helper_here.get_config().seed\n"
        "    return config\n"
    )
    for name in ("this", "helper_here", "shapes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config = read_config(str(folder / "main.py"))
    assert config.seed == 11 and config.train.steps == 500
    assert sys.path == before
    for name in ("this", "helper_here", "shapes"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("config.train.stpes = 4", 'own.py:7: the config has no key "stpes" Did you'),
        ("config.train.steps = 'x'", "own.py:7: TypeError"),
        ("None.x", "own.py:7: AttributeError: 'NoneType'"),
        ("return 3", "must return a ConfigDict"),
        ("import not_there", "own.py:7: ModuleNotFoundError"),
        ("raise ValueError('never')", "own.py:7: never"),
        (")", "own.py: SyntaxError"),
    ],
)
def test_errors_in_a_config_name_its_line(tmp_path, line, fragment):
    path = write(tmp_path / "own.py", line)
    with pytest.raises(ValueError) as caught:
        read_config(path)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--config.model.nmae=x"], 'did you mean "name"'),
        (["--config.train.steps=ten"], "train.steps"),
        (["--confgi.train.steps=1"], "confgi"),
        (["more"], "more"),
    ],
)
def test_keys_that_cannot_be_set(tmp_path, arguments, fragment):
    path = write(tmp_path / "own.py")
    with pytest.raises(ValueError) as caught:
        read_config(path, arguments)
    assert fragment in str(caught.value).lower()


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no config file.*jaxseg configs"):
        read_config(str(tmp_path / "own.py"))


def test_configs_are_listed_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    assert all(len(line.split()) > 3 for line in lines)

    assert cli.main(["configs", "shapes"]) == 0
    assert cli.main(["configs", "fcn8s_vgg16_camvid.py", "--output", "own/8.py"]) == 0
    assert Path("shapes.py").read_text() == shipped_configs()["shapes"].read_text()
    # One that builds on others, which are not beside the copy.
    assert read_config("own/8.py").model.name == "fcn8s"

    assert cli.main(["configs", "shapes"]) == 1
    assert "already exists" in capsys.readouterr().err
    assert cli.main(["configs", "shape"]) == 1
    assert "did you mean 'shapes'" in capsys.readouterr().err


TRAIN = (*JAXSEG, "train")
TRAIN_PY = (str(ROOT / "train.py"),)
TINY = (
    "config.model.kwargs = {'width': 2, 'depths': (1, 1)}; "
    "config.data.options = dict(train_examples=4, val_examples=2, image_size=(16, 16));"
    "config.data.prepared_dir = 'prepared'; "
    "config.train.batch_size = config.eval.batch_size = 2; config.eval.overlays = 0"
)


def test_both_commands_train_and_resume_from_any_directory(tmp_path):
    """The second goes on with the run of the first."""
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs" / "base.py", TINY)
    (tmp_path / "configs" / "own.py").write_text("from base import get_config\n")
    own = "--config=configs/own.py"
    first = run_python(tmp_path, *TRAIN, own, "--workdir=run", "--config.train.steps=2")
    assert first.returncode == 0, first.stderr
    second = run_python(tmp_path, *TRAIN_PY, own, "--workdir", "run")
    assert second.returncode == 0, second.stderr
    assert "resuming after step 2 of 3" in second.stdout
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())


@pytest.mark.parametrize("program", [TRAIN, TRAIN_PY])
def test_errors_are_one_line(program, tmp_path):
    own = write(tmp_path / "own.py")
    data = ("--config.data.dataset=camvid", "--config.data.root=/nowhere")
    result = run_python(tmp_path, *program, "--config", own, "--workdir=run", *data)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: config.data: ") and "/nowhere" in line
    assert not (tmp_path / "run").exists()
