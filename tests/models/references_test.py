"""Networks written once more in PyTorch, after the papers: same weights, same logits.

Where PyTorch is not installed, logits are compared with those it gave, kept in
`golden/`. JAXSEG_WRITE_GOLDEN=1 writes them anew.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxseg.models import create_model

GOLDEN = Path(__file__).parent / "golden"
EPSILON = 1e-5


def _torch():
    try:
        import torch
    except ImportError:
        return None
    return torch


@pytest.fixture
def assert_equals(random_variables):
    """Compares a model with a reference, a function of (image, parameters, torch)."""

    def check(case, model, reference, size, channels=3):
        image = np.random.default_rng(1).uniform(-1, 1, (1, *size, channels))
        image = image.astype(np.float32)
        variables = random_variables(model, image)
        logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
        logits = np.asarray(logits)
        sample, path, torch = logits[:, ::5, ::5], GOLDEN / f"{case}.npy", _torch()
        if torch is not None:
            net = Net(torch, variables)
            x = torch.tensor(image.transpose(0, 3, 1, 2))
            expected = reference(net, x).numpy().transpose(0, 2, 3, 1)
            assert logits.shape == expected.shape
            _assert_close(logits, expected)
            if os.environ.get("JAXSEG_WRITE_GOLDEN"):
                GOLDEN.mkdir(exist_ok=True)
                np.save(path, expected[:, ::5, ::5])
        _assert_close(sample, np.load(path))

    return check


def _assert_close(logits, expected):
    error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
    assert error < 1e-4, f"relative error {error:.1e}"


class Net:
    """PyTorch's functions with the weights of our variables."""

    def __init__(self, torch, variables):
        self.torch, self.f, self.variables = torch, torch.nn.functional, variables

    def _get(self, collection, path):
        node = self.variables[collection]
        for key in path.split("/"):
            node = node[key]
        return {k: self.torch.tensor(np.array(v)) for k, v in node.items()}

    def conv(self, x, path, padding=0, dilation=1):
        p = self._get("params", path)
        kernel = p["kernel"].permute(3, 2, 0, 1)
        return self.f.conv2d(
            x, kernel, p.get("bias"), padding=padding, dilation=dilation
        )

    def deconv(self, x, path, stride=1, padding=0):
        p = self._get("params", path)
        kernel = p["kernel"].permute(2, 3, 0, 1)
        return self.f.conv_transpose2d(x, kernel, p.get("bias"), stride, padding)

    def bn(self, x, path):
        p, s = self._get("params", path), self._get("batch_stats", path)
        mean, var = s["mean"], s["var"]
        return self.f.batch_norm(x, mean, var, p["scale"], p["bias"], eps=EPSILON)

    def relus(self, x, path, depth, padding=1, dilation=1):
        for i in range(1, depth + 1):
            x = self.f.relu(self.conv(x, f"{path}/conv{i}", padding, dilation))
        return x

    def unpool(self, x, indices, size):
        # MaxUnpool2d refuses sizes that ceil mode makes, so scatter by hand.
        flat = self.torch.zeros(*x.shape[:2], size[0] * size[1])
        flat.scatter_(2, indices.flatten(2), x.flatten(2))
        return flat.unflatten(2, tuple(size))

    def interpolate(self, x, kernel, stride):
        """The released nets' deconvolution: `surgery.py`'s kernel on the diagonal."""
        factor = (kernel + 1) // 2
        center = factor - 1 if kernel % 2 else factor - 0.5
        row = 1 - np.abs(np.arange(kernel) - center) / factor
        weight = self.torch.tensor(np.outer(row, row), dtype=x.dtype)
        classes = x.shape[1]
        weight = weight.expand(classes, 1, kernel, kernel)
        return self.f.conv_transpose2d(x, weight, stride=stride, groups=classes)


def _crop(x, like, offset):
    h, w = like.shape[2:]
    return x[:, :, offset : offset + h, offset : offset + w]


def _fcn(skips, scales):
    def reference(net, image):
        x = net.f.pad(image, (99,) * 4)
        pools = []
        for i, depth in enumerate((2, 1, 1, 1, 2), start=1):
            x = net.relus(x, f"encoder/stage{i}", depth)
            x = net.f.max_pool2d(x, 2, ceil_mode=True)
            pools.append(x)
        x = net.f.relu(net.conv(x, "neck/block/fc6"))
        x = net.f.relu(net.conv(x, "neck/block/fc7"))
        x = net.conv(x, "neck/score")
        for i, offset in zip(range(skips), (5, 9)):
            x = net.interpolate(x, 4, 2)
            pool = scales[i] * pools[3 - i]
            x = x + _crop(net.conv(pool, f"decoder/skips_{i}/project"), x, offset)
        stride = 32 // 2**skips
        x = net.interpolate(x, 2 * stride, stride)
        return _crop(x, image, (19, 27, 31)[skips])

    return reference


@pytest.mark.parametrize(
    ("name", "skips", "scales"),
    [
        ("fcn32s", 0, ()),
        ("fcn16s", 1, (1,)),
        ("fcn8s", 2, (1, 1)),
        ("fcn8s_atonce", 2, (0.01, 0.0001)),
    ],
)
def test_fcn_as_released(assert_equals, name, skips, scales):
    vgg = dict(widths=(2, 4, 4, 4, 4), depths=(2, 1, 1, 1, 2))
    model = create_model(name, 3, geometry="released", encoder_kwargs=vgg, hidden=6)
    assert_equals(name, model, _fcn(skips, scales), (33, 47))


def test_fcn_alexnet_as_released(assert_equals):
    def reference(net, image):
        f, x = net.f, image
        p = net._get("params", "encoder/stage1/conv1")
        kernel = p["kernel"].permute(3, 2, 0, 1)
        x = f.relu(f.conv2d(x, kernel, p["bias"], stride=4, padding=100))
        x = f.max_pool2d(x, 3, 2, ceil_mode=True)
        x = f.local_response_norm(x, 5, 1e-4, 0.75, 1.0)
        for stage, layers in ((2, ((2, 2),)), (3, ((1, 1), (2, 1), (2, 1)))):
            for i, (groups, padding) in enumerate(layers, start=1):
                p = net._get("params", f"encoder/stage{stage}/conv{i}")
                kernel = p["kernel"].permute(3, 2, 0, 1)
                x = f.relu(
                    f.conv2d(x, kernel, p["bias"], padding=padding, groups=groups)
                )
            x = f.max_pool2d(x, 3, 2, ceil_mode=True)
            if stage == 2:
                x = f.local_response_norm(x, 5, 1e-4, 0.75, 1.0)
        x = f.relu(net.conv(x, "neck/block/fc6"))
        x = f.relu(net.conv(x, "neck/block/fc7"))
        x = net.interpolate(net.conv(x, "neck/score"), 63, 32)
        return _crop(x, image, 18)

    model = create_model(
        "fcn32s",
        3,
        encoder="alexnet",
        geometry="released",
        encoder_kwargs=dict(widths=(4, 4, 8, 4, 4)),
        hidden=6,
    )
    assert_equals("fcn_alexnet", model, reference, (34, 47))


def _unet(levels, padding, release=False):
    def reference(net, image):
        x, skips = image, []
        for i in range(1, levels + 1):
            x = net.relus(x, f"encoder/stage{i}", 2, padding)
            if i < levels:
                skips.append(x)
                x = net.f.max_pool2d(x, 2, ceil_mode=True)
        for i, skip in enumerate(reversed(skips)):
            x = net.deconv(x, f"decoder/upsamplers_{i}/conv", stride=2)
            x = net.f.relu(x) if release else x
            if padding:
                x = _crop(x, skip, 0)
            else:
                skip = _crop(skip, x, (skip.shape[2] - x.shape[2]) // 2)
            x = net.torch.cat([x, skip], dim=1)
            x = net.relus(x, f"decoder/blocks_{i}", 2, padding)
        return net.conv(x, "head")

    return reference


@pytest.mark.parametrize("release", [False, True])
def test_unet(assert_equals, release):
    model = create_model("unet", 3, width=2, levels=4, release=release)
    name = "unet_release" if release else "unet"
    assert_equals(name, model, _unet(4, 1, release), (33, 47), channels=1)


def test_unet_valid(assert_equals):
    model = create_model("unet_valid", 2, width=2)
    assert_equals("unet_valid", model, _unet(5, 0), (204, 204), channels=1)


def test_deconvnet(assert_equals):
    depths = (2, 2, 3, 3, 3)

    def reference(net, x):
        def layer(x, path, i=1, padding=0, conv=net.conv):
            x = conv(x, f"{path}/conv{i}", padding=padding)
            return net.f.relu(net.bn(x, f"{path}/bn{i}"))

        trail = []
        for stage, depth in enumerate(depths, start=1):
            for i in range(1, depth + 1):
                x = layer(x, f"encoder/stage{stage}", i, 1)
            size = x.shape[2:]
            x, indices = net.f.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            trail.append((indices, size))
        x = layer(x, "neck/parts_0")
        x = layer(x, "neck/parts_1")
        x = layer(x, "neck/parts_2", conv=net.deconv)
        for block, depth in enumerate(reversed(depths)):
            x = net.unpool(x, *trail.pop())
            for i in range(1, depth + 1):
                x = layer(x, f"decoder/blocks_{block}", i, 1, net.deconv)
        return net.conv(x, "head")

    model = create_model("deconvnet", 3, width=2, hidden=6)
    assert_equals("deconvnet", model, reference, (193, 225))


@pytest.mark.parametrize("size", [(49, 65), (50, 36)])
def test_largefov(assert_equals, size):
    """At sizes 8 k + 1, for which it was made, and at others."""

    def reference(net, image):
        f, x = net.f, image
        for i, depth in enumerate((2, 2, 3, 3, 3), start=1):
            dilation = 2 if i == 5 else 1
            x = net.relus(x, f"encoder/stage{i}", depth, dilation, dilation)
            x = f.max_pool2d(x, 3, 2 if i < 4 else 1, 1, ceil_mode=True)
        x = f.avg_pool2d(x, 3, 1, 1)
        x = f.relu(net.conv(x, "neck/block/fc6", padding=12, dilation=12))
        x = f.relu(net.conv(x, "neck/block/fc7"))
        x = net.conv(x, "neck/score")
        whole = [8 * (n - 1) + 1 for n in x.shape[2:]]
        x = f.interpolate(x, whole, mode="bilinear", align_corners=True)
        return _crop(x, image, 0)

    model = create_model("deeplab_largefov", 3, width=2, hidden=6)
    assert_equals(f"largefov_{size[0]}x{size[1]}", model, reference, size)
