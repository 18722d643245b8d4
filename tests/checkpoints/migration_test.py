"""A workdir of version 0.1, commit 4fea102, stopped after 5 of 8 steps, lives on.

`fixtures/workdir_0_1.zip` holds it, and what that version made of it: the metrics and
the parameters of the same run undisturbed, its evaluation and a prediction.
"""

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxseg
from jaxseg import cli
from jaxseg.inference.export import export_network
from jaxseg.inference.predictor import Predictor
from jaxseg.training import default_config, run
from jaxseg.training.metric_writer import read_metrics
from jaxseg.utils.trees import flatten
from tests.helpers import draw_image

FIXTURE = Path(__file__).parent / "fixtures" / "workdir_0_1.zip"

# As users compile, on the machine that made the fixture, all numbers are equal bit for
# bit (benchmarks/migration.py). Other compilations sum in another order.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def unpack(folder: Path) -> None:
    """Unpacks the fixture, with its data prepared in the same folder."""
    shutil.unpack_archive(FIXTURE, folder)
    metadata = folder / "workdir" / "metadata.json"
    content = json.loads(metadata.read_text())
    content["data"]["prepared_dir"] = str(folder / "prepared")
    metadata.write_text(json.dumps(content))


@pytest.fixture
def old(tmp_path):
    """The folder of the unpacked fixture."""
    unpack(tmp_path)
    return tmp_path


def create_config(old: Path) -> ConfigDict:
    """The config of the run with today's keys."""
    content = jaxseg.load(old / "workdir")[2].config
    config = default_config()
    with config.unlocked():
        for section in ("model", "data", "augment", "loss", "optimizer", "train"):
            config[section].update(content[section])
        config.eval.update(content["eval"])
        config.parallel.update(content["parallel"])
    config.data.prepared_dir = str(old / "prepared")
    return config


def test_names_are_migrated(old):
    _, _, metadata = jaxseg.load(old / "workdir")
    assert metadata.model["encoder_kwargs"] == {"widths": [2] * 5, "depths": [1] * 5}
    assert metadata.config["model"]["kwargs"]["upsampler_kwargs"] == {"kernel": 4}
    assert metadata.config["loss"]["chunks"] == 2
    assert metadata.eval_batch_size == 4 and metadata.step == 5


def resume(old: Path) -> None:
    """Runs the rest of the run."""
    run(create_config(old), str(old / "workdir"))


def test_it_resumes(old, capfd, monkeypatch):
    """In a process that compiles as users do, and as the fixture was made."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(resume, old).result()
    assert "resuming after step 5 of 8" in capfd.readouterr().out
    lines = [
        json.loads(x) for x in (old / "metrics_full.jsonl").read_text().split("\n")[:-1]
    ]
    expected = [x for x in lines if x["step"] > 5]
    got = [x for x in read_metrics(old / "workdir") if x["step"] > 5]
    for key in ("loss", "grad_norm", "learning_rate", "val_miou", "val_pixel_accuracy"):
        values = ([x[key] for x in kept if key in x] for kept in (got, expected))
        np.testing.assert_allclose(*values, **CLOSE, err_msg=key)
    leaves = flatten(jaxseg.load(old / "workdir", "latest")[1])
    stored = np.load(old / "expected.npz")
    assert leaves.keys() | {"classes"} == set(stored.files)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(leaf, stored[name], **CLOSE, err_msg=name)


def test_it_is_evaluated_predicted_with_and_exported(old):
    output = old / "new.json"
    command = ["evaluate", f"--workdir={old}/workdir", f"--output={output}"]
    command += ["--dataset=shapes", f"--prepared-dir={old}/prepared"]
    assert cli.main(command) == 0
    got, expected = (
        json.loads((old / x).read_text()) for x in ("new.json", "report.json")
    )
    for key in ("miou", "pixel_accuracy", "fw_iou"):
        assert got[key] == pytest.approx(expected[key], abs=1e-3)

    network = jaxseg.load(old / "workdir")
    image = draw_image(50, 70)
    classes = np.load(old / "expected.npz")["classes"]
    assert np.mean(Predictor(*network)(image) != classes) < 1e-3
    exported = export_network(*network, platforms=[jax.default_backend()], batch=1)
    assert np.mean(np.asarray(exported.call(image[None]))[0] != classes) < 1e-3
