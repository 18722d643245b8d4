"""Every step once, with the versions that are installed: python tests/smoke.py

Imports all modules, takes a training step, saves, resumes on two devices, trains on
each backend, predicts and exports. Needs nothing but jaxseg itself.
"""

import contextlib
import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path

import jax
import numpy as np

import jaxseg
from jaxseg.training import default_config, run


def config(steps: int, **changes):
    """A very small run that saves after each step."""
    config = default_config()
    config.model.kwargs = {"width": 2, "depths": (1, 1), "dropout": 0.5}
    config.data.prepared_dir = "prepared"
    config.data.options = {
        "image_size": (16, 24),
        "train_examples": 8,
        "val_examples": 4,
    }
    config.augment.scale = (0.8, 1.2)
    config.augment.hue = 0.1
    config.train.steps = steps
    config.train.batch_size = config.eval.batch_size = 4
    config.train.ema_decay = 0.5
    config.train.save_every_steps = 1
    config.parallel.data = 1
    config.update_from_flattened_dict(changes)
    return config


def check_imports():
    for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
        importlib.import_module(module.name)


def check_training():
    assert np.isfinite(run(config(1), "run")["miou"])


def check_resuming_on_other_devices():
    run(config(2, **{"parallel.data": 2, "parallel.fsdp": True}), "run")
    assert jaxseg.load("run", "latest")[2].step == 2


def check_accumulation_and_sgd():
    changes = {
        "optimizer.name": "sgd",
        "optimizer.accumulate_steps": 2,
        "optimizer.clip_norm": 1.0,
        "optimizer.lr_multipliers": (("*/bias", 2.0),),
    }
    run(config(2, **changes), "sgd")


def check_shard_map():
    run(config(1, **{"parallel.data": 2, "parallel.backend": "shard_map"}), "shards")


def check_pmap():
    run(config(1, **{"parallel.data": 2, "parallel.backend": "pmap"}), "pmap")


def check_prediction():
    from jaxseg.inference.predictor import Predictor

    network = jaxseg.load("run")
    image = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    assert Predictor(*network)(image).shape == (37, 51)


def check_export():
    from jaxseg.cli import main

    assert main(["export", "--workdir", "run", "--output", "net.stablehlo"]) == 0
    network = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes()))
    shape = network.call(np.zeros((1, 20, 28, 3), np.uint8)).shape
    assert shape[1:3] == (20, 28)


CHECKS: tuple[Callable[[], None], ...] = (
    check_imports,
    check_training,
    check_resuming_on_other_devices,
    check_accumulation_and_sgd,
    check_shard_map,
    check_pmap,
    check_prediction,
    check_export,
)

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    names = {
        text.partition(">=")[0] for text in requires("jaxseg") or () if ";" not in text
    }
    print(f"Python {sys.version.split()[0]}, jaxseg {version('jaxseg')}")
    print(*(f"{name}=={version(name)}" for name in sorted(names)), sep="\n")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for check in CHECKS:
            print(f"-- {check.__name__}", flush=True)
            check()
    print("all is well")
