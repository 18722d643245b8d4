"""Torchvision's models as references, and narrow forms of every encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_variables():
    """Fills a module's variables with random numbers, in no time even if it is deep."""

    def fill(module, image):
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), image, train=False)
        )
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            name = path[-1].key
            if name == "kernel":
                fan_in = np.prod(leaf.shape[:-1])
                x = rng.normal(scale=np.sqrt(2 / fan_in), size=leaf.shape)
            elif name in ("scale", "var"):
                x = rng.uniform(0.5, 1.5, leaf.shape)
            else:
                x = rng.uniform(-0.1, 0.1, leaf.shape)
            return x.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return fill


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


def _convert(name, value):
    """Collection, name and array of one of PyTorch's tensors in Flax."""
    value = value.numpy()
    match name:
        case "weight" if value.ndim == 4:
            return "params", "kernel", value.transpose(2, 3, 1, 0)
        case "weight" if value.ndim == 2:
            return "params", "kernel", value.T
        case "weight":
            return "params", "scale", value
        case "layer_scale":
            return "params", "scale", value.ravel()
        case "bias":
            return "params", "bias", value
        case "running_mean":
            return "batch_stats", "mean", value
        case "running_var":
            return "batch_stats", "var", value


@pytest.fixture
def assert_equals_torch():
    """Gives a model a reference's random weights and compares their logits.

    `rename` turns the name of one of the reference's modules into ours, a path; `side`
    is that of the map which the first dense layer flattens, if it flattens one. The
    error is relative to the largest logit.
    """

    def compare(model, reference, rename, size, side=1, tolerance=1e-4):
        import torch

        _randomise(reference.eval())
        image = np.random.default_rng(0).normal(size=(1, size, size, 3))
        image = image.astype(np.float32)
        with torch.no_grad():
            expected = reference(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
        variables = {}
        for name, value in reference.state_dict().items():
            module, _, name = name.rpartition(".")
            if name == "num_batches_tracked":
                continue
            collection, name, value = _convert(name, value)
            path = rename(module)
            if path == "head/fc6" and name == "kernel":
                value = value.reshape(-1, side, side, value.shape[-1])
                value = value.transpose(1, 2, 0, 3).reshape(-1, value.shape[-1])
            node = variables.setdefault(collection, {})
            for key in path.split("/"):
                node = node.setdefault(key, {})
            assert name not in node, f"{module} -> {path} twice"
            node[name] = value
        ours = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
        shapes = (jax.tree.map(jnp.shape, tree) for tree in (variables, ours))
        np.testing.assert_equal(*shapes)
        logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
        error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
        print(f"relative error {error:.1e}")
        assert error < tolerance

    return compare
