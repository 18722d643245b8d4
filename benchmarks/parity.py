"""Imports torchvision's models without PyTorch and compares the logits.

    python benchmarks/parity.py --output docs/parity.md

Each model starts from random weights and random BatchNorm statistics, is saved by torch
in its zip and in its legacy layout, and is imported from both by a process that has
no torch. There the logits of a random image are computed and compared with torch's.
Exits with 0 if all of them are equal within 1e-4 of the largest logit. Takes a few
minutes, 3 GiB of memory and 2 GiB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4
SIZES = {"alexnet": 224, "vgg16": 224, "vgg16_bn": 224, "convnext_tiny": 64}
"""Of images, in pixels; 65 elsewhere.

Dense layers fix it. ConvNeXt's strided convolutions round sizes up here, so that every
size passes, and down in torchvision: they agree at multiples of 32.
"""

CLASSIFIERS = {
    "alexnet": "alexnet_torchvision",
    "convnext_tiny": "convnext_tiny",
    "googlenet": "googlenet_bn",
    "mobilenet_v2": "mobilenet_v2",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
}
MODELS = {
    name: {"name": "classifier", "encoder": encoder, "num_classes": 1000}
    for name, encoder in CLASSIFIERS.items()
} | {
    f"{head}_{encoder}": {
        "name": f"{head}_resnet50",
        "encoder": encoder,
        "num_classes": 21,
    }
    for head in ("fcn", "deeplabv3")
    for encoder in ("resnet50", "resnet101")
}
"""Of torchvision, by the arguments that make ours."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        compare(args.child)
        return
    lines = [
        "| model | layout | tensors | largest relative difference |",
        "|---|---|---:|---:|",
    ]
    print(*lines, sep="\n", flush=True)
    worst = 0.0
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            save(name, Path(folder))
            for layout, count, error in run_child(Path(folder)):
                lines.append(f"| `{name}` | {layout} | {count} | {error:.1e} |")
                print(lines[-1], flush=True)
                worst = max(worst, error)
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n")
    sys.exit(0 if worst < TOLERANCE else 1)


def save(name: str, folder: Path) -> None:
    """Saves a torchvision model of random weights, an image, and its logits."""
    torch, torchvision = import_torchvision()
    torch.manual_seed(0)
    models, arguments = torchvision.models, {}
    if name not in CLASSIFIERS:
        models, arguments = models.segmentation, {"weights_backbone": None}
        arguments["aux_loss"] = True
    elif name == "googlenet":
        arguments["init_weights"] = False  # true takes a minute
    net = getattr(models, name)(weights=None, **arguments).eval()
    state = net.state_dict()
    # What starts as zeros or ones is made to count: norms, statistics, scales.
    for key, value in state.items():
        if key.endswith("running_var") or (key.endswith("weight") and value.ndim < 2):
            value.uniform_(0.5, 1.5)
        elif key.endswith("layer_scale"):
            value.uniform_(-1, 1)
        elif key.endswith(("running_mean", "bias")):
            value.uniform_(-0.1, 0.1)
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    size = SIZES.get(name, 65)
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        logits = net(image)
    logits = logits if name in CLASSIFIERS else logits["out"]
    np.save(folder / "image.npy", np.moveaxis(image.numpy(), 1, -1))
    np.save(folder / "logits.npy", np.moveaxis(logits.numpy(), 1, -1))
    (folder / "model.json").write_text(json.dumps(MODELS[name]))


def import_torchvision():
    """Torch and torchvision, with or without its compiled operators."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # Its operators were built for another torch. They are not used here, but it
        # looks two of them up by name while it is imported.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torch, torchvision


def run_child(folder: Path) -> list[tuple[str, int, float]]:
    """Layout, number of tensors and error, from a process without torch."""
    command = [sys.executable, __file__, "--child", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compare(folder: Path) -> None:
    """Imports both files of a folder and prints what `run_child` returns."""
    import jax

    from jaxseg.weights.importer import build, import_weights

    def apply(model, variables, image):
        return model.apply(variables, image, train=False)

    apply = jax.jit(apply, static_argnums=0)
    arguments = json.loads((folder / "model.json").read_text())
    image, expected = np.load(folder / "image.npy"), np.load(folder / "logits.npy")
    rows = []
    for layout in ("zip", "legacy"):
        imported = import_weights(folder / f"{layout}.pth", arguments)
        assert not imported.converted.new and not imported.converted.dropped
        logits = np.asarray(apply(build(imported.model), imported.variables, image))
        assert logits.shape == expected.shape
        error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
        rows.append((layout, len(imported.converted.variables), float(error)))
    assert "torch" not in sys.modules
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
