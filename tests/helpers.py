"""What several test files need."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.training import default_config

ROOT = Path(__file__).parents[1]
JAXSEG = ("-c", "import sys; from jaxseg.cli import main; sys.exit(main())")
"""Arguments of Python that run the `jaxseg` command."""

NAMES = ("road", "sky", "tree")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 90, 0))
NORMALIZATION = Normalization((120.0,), (60.0,))


class ConvNet(nn.Module):
    """One convolution: each pixel's logits depend on two pixels around it."""

    num_classes: int = 3
    kernel: int = 5

    @nn.compact
    def __call__(self, image, *, train):
        del train
        return nn.Conv(self.num_classes, (self.kernel, self.kernel))(image)


def make_metadata(**changes: Any) -> RunMetadata:
    """The description of a network that tells three classes apart."""
    fields: dict[str, Any] = {
        "model": {"name": "net"},
        "class_names": NAMES,
        "palette": PALETTE,
        "normalization": NORMALIZATION,
    }
    return RunMetadata(**fields | changes)


def init_variables(model: nn.Module, image: Any, seed: int = 0) -> Variables:
    """Initial variables, compiled as one: op by op takes several times as long."""
    return jax.jit(partial(model.init, train=False))(jax.random.key(seed), image)


def draw_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def tiny_config(prepared_dir: object, **changes: Any) -> ConfigDict:
    """A run on one device of six steps of a very small network on drawn shapes.

    Args:
        prepared_dir: folder for the prepared data.
        changes: values by dotted key, such as `**{"train.steps": 2}`.
    """
    config = default_config()
    config.model.kwargs = {"width": 2, "depths": (1, 1, 1), "dropout": 0.5}
    config.data.prepared_dir = str(prepared_dir)
    config.data.options = {
        "image_size": (16, 24),
        "train_examples": 12,
        "val_examples": 6,
    }
    config.schedule.name = "constant"
    config.augment.brightness = 0.2
    config.train.steps = 6
    config.train.batch_size = config.eval.batch_size = 4
    config.parallel.data = 1
    config.update_from_flattened_dict(changes)
    return config


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The result of Python with these arguments, started in a folder of its own."""
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
