"""Four fake CPU devices, quick compilation, and PyTorch's models as references."""

import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of the tests' time goes into compilation. XLA's older emitters of fused loops
# need half of it, and a cache spares what was compiled before. Variables, so that the
# workers of pytest-xdist, and the processes that tests start, have them too.
if version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):  # others may not know them
    os.environ["XLA_FLAGS"] = " ".join(
        (
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        )
    )
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxseg-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["XDG_STATE_HOME"] = (
    _state := tempfile.TemporaryDirectory(prefix="jaxseg-tests-")
).name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg.data import images
from jaxseg.utils.trees import unflatten
from jaxseg.weights.mapping import convert

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _usual_image_sizes(monkeypatch):
    """`expect_large_images`, which a test may call, is for a whole process."""
    monkeypatch.setattr(images, "_expected_px", images._expected_px)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def mount_disk(tmp_path):
    """Mounts a file system of a few bytes in `tmp_path`; remounts it with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int | None = None, *options: str) -> Path:
        given = [*options, *([] if size is None else [f"size={size}"])]
        command = ["mount", "-t", "tmpfs", "-o", ",".join(given), "tmpfs", str(folder)]
        if os.name == "nt" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot mount a file system")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def torchvision():
    """The package, with or without its compiled operators."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        # Its operators were built for another torch. They are not used here, but it
        # looks two of them up by name while it is imported.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return pytest.importorskip("torchvision")


def _randomize(reference):
    """Makes all that starts as zeros or ones count: norms, statistics, scales."""
    import torch

    torch.manual_seed(0)
    for name, value in reference.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim < 2):
            value.uniform_(0.5, 1.5)
        elif name.endswith("layer_scale"):
            value.uniform_(-1, 1)
        elif name.endswith(("running_mean", "bias")):
            value.uniform_(-0.1, 0.1)


@pytest.fixture
def assert_equals_torch():
    """Gives a model a reference's random weights and compares their logits.

    The weights go through `mapping`. `output` takes from the reference's output the
    logits, channels second where they have places. The error is relative to the largest
    logit.
    """

    def compare(
        model, reference, mapping, size, tolerance=1e-4, output=lambda logits: logits
    ):
        import torch

        _randomize(reference.eval())
        image = np.random.default_rng(0).normal(size=(1, size, size, 3))
        image = image.astype(np.float32)
        with torch.no_grad():
            x = torch.tensor(image.transpose(0, 3, 1, 2))
            expected = np.moveaxis(output(reference(x)).numpy(), 1, -1)
        tensors = {k: v.numpy() for k, v in reference.state_dict().items()}
        like = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
        variables = unflatten(convert(tensors, like, mapping).variables)
        logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
        assert logits.shape == expected.shape
        error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
        print(f"relative error {error:.1e}")
        assert error < tolerance

    return compare
