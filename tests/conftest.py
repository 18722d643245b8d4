"""Four fake CPU devices, strict shapes, and PyTorch's models as references."""

import jax
import numpy as np
import pytest

from jaxseg.utils.trees import unflatten
from jaxseg.weights.mapping import convert

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


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


def _randomise(reference):
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

        _randomise(reference.eval())
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
