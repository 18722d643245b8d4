"""Trains on one device and on four, every way, and compares all that comes of it.

    python benchmarks/equality.py --output docs/results/equality.md

Each network takes three steps of SGD with momentum on one batch, whose void pixels are
spread unevenly over the samples, with dropout and BatchNorm over the whole batch. Its
height divides by the devices at the first level alone; where space is split, there is a
second case in which it does at all levels. Then loss, parameters, BatchNorm's statistics
and the optimizer's state are compared with those of one device, and the gradient of the
first step.

Networks compute in float64, and the loss of their float32 logits: in float32 a ReLU or a
maximum is now and then decided by rounding, and the gradient jumps.

Four processors are made of the one that there is. Takes some minutes.
"""

import argparse
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax

from jaxseg.losses import cross_entropy
from jaxseg.models import create_model
from jaxseg.ops.image_normalization import Normalization
from jaxseg.parallel import mesh as mesh_module
from jaxseg.parallel.mesh import Parallel, create_parallel
from jaxseg.training.step import TrainState, create_state, train_step

STEPS, SAMPLES, CLASSES = 3, 4, 3
SIZES = ((68, 40), (64, 40))
SMALL_VGG = {"widths": (3, 4, 4, 5, 5), "depths": (1, 1, 1, 1, 1)}
SMALL_RESNET = {"width": 4, "depths": (1, 1, 1, 1)}
MODELS = {
    "segnet": {"width": 4, "depths": (1, 2, 1, 1), "dropout": 0.5},
    "fcn8s": {"encoder_kwargs": SMALL_VGG, "hidden": 8},
    "unet": {"width": 2, "levels": 3, "norm": True},
    "deeplab_v3plus": {
        "encoder_kwargs": SMALL_RESNET,
        "multi_grid": (2,),
        "width": 4,
        "low_level": 3,
    },
}
"""Networks as they are, but narrow; FCN, U-Net and DeepLab have dropout of themselves."""

LAYOUTS = {
    "jit 4x1": {"data": 4},
    "jit 2x2": {"data": 2, "space": 2},
    "jit 1x4": {"data": 1, "space": 4},
    "jit 4x1 fsdp": {"data": 4, "fsdp": True},
    "jit 2x2 fsdp": {"data": 2, "space": 2, "fsdp": True},
    "shard_map 4x1": {"backend": "shard_map", "data": 4},
    "pmap 4x1": {"backend": "pmap", "data": 4},
}
"""Arguments of `create_parallel`, by backend and mesh: data x space."""


def train(
    name: str, size: tuple[int, int], parallel: Parallel, remat: bool = False
) -> dict:
    """Losses, the first gradient and the last state of a few steps.

    Args:
        name: of `MODELS`.
        size: height and width of the images.
        parallel: the devices and the way to use them.
        remat: whether activations are computed again for the gradient.
    """
    # In networks so narrow fsdp would split next to nothing.
    split_all = mock.patch.object(mesh_module, "LEAST_SPLIT", 8)
    with jax.enable_x64(True), split_all:
        return _train(name, size, parallel, remat)


def _train(name, size, parallel, remat):
    model = create_model(
        name,
        CLASSES,
        **MODELS[name],
        dtype="float64",
        param_dtype="float64",
        axis_name=parallel.axis_name,
        remat=remat,
    )
    optimizer = optax.sgd(0.05, momentum=0.9)
    abstract = parallel.abstract(
        jax.eval_shape(
            partial(create_state, model, optimizer, image_shape=(*size, 3)),
            jax.random.key(0),
        )
    )
    placement = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.device_put(_draw_state(abstract), placement)
    step = parallel.compile(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss_fn=cross_entropy,
            normalization=Normalization(mean=(120.0,), std=(60.0,)),
        ),
        outputs=(parallel.specs(abstract), jax.sharding.PartitionSpec()),
    )
    batch = parallel.place(_batch(size))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        if len(losses) == 1:  # the momentum after the first step is its gradient
            gradients = jax.device_get(state.opt_state[0].trace)
    state = jax.device_get(state.replace(key=()))
    return {
        "loss": np.array(losses),
        "gradients": gradients,
        "parameters": state.params,
        "statistics": state.batch_stats,
        "optimizer": state.opt_state,
    }


def differences(one: dict, other: dict) -> dict[str, float]:
    """Largest differences of what `train` gives, each by the largest value there."""
    return {name: _difference(one[name], other[name]) for name in one}


def _difference(one, other) -> float:
    one, other = (jax.tree.leaves(tree) for tree in (one, other))
    if not one:
        return 0.0
    scale = max(np.abs(a).max() for a in one)
    return float(max(np.abs(a - b).max() for a, b in zip(one, other)) / scale)


def _draw_state(abstract: TrainState) -> TrainState:
    """A state in which no variable is zero, as FCN's scores are at first.

    NumPy draws it, as XLA needs long to compile random numbers. All of it is float64,
    as it is after a step, so that the step is compiled once.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(
                scale=(2 / math.prod(leaf.shape[:-1])) ** 0.5, size=leaf.shape
            )
        low, high = (0.5, 1.5) if path[-1].key in ("scale", "var") else (-0.1, 0.1)
        return rng.uniform(low, high, leaf.shape)

    draw_all = partial(jax.tree_util.tree_map_with_path, draw)
    return abstract.replace(
        step=np.int32(0),
        params=draw_all(abstract.params),
        batch_stats=draw_all(abstract.batch_stats),
        opt_state=jax.tree.map(lambda x: np.zeros(x.shape), abstract.opt_state),
        key=jax.random.key(0),
    )


def _batch(size) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (SAMPLES, *size)).astype(np.uint8)
    label[0] = 255
    label[1, : size[0] // 2] = 255
    image = rng.integers(0, 256, (SAMPLES, *size, 3)).astype(np.uint8)
    return {"image": image, "label": label}


def rows(layouts: list[str]) -> Iterator[list[str]]:
    """The rows of the table for these layouts, one by one."""
    for name in MODELS:
        for size in SIZES:
            reference = train(name, size, create_parallel(data=1))
            for layout in layouts:
                arguments = LAYOUTS[layout]
                if size == SIZES[1] and "space" not in arguments:
                    continue
                got = train(name, size, create_parallel(**arguments))
                found = differences(reference, got)
                image = "x".join(map(str, size))
                yield [name, image, layout, *(f"{x:.0e}" for x in found.values())]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=[*LAYOUTS])
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longest
    head = ["network", "image", "backend, data x space", "loss", "gradients"]
    head += ["parameters", "statistics", "optimizer"]
    lines = [head, ["---"] * 3 + ["---:"] * 5]
    for line in lines:
        print("|", " | ".join(line), "|")
    for line in rows(args.layouts):
        lines.append(line)
        print("|", " | ".join(line), "|", flush=True)
    if args.output:
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        args.output.write_text(
            f"# Four devices equal one\n\n`python benchmarks/equality.py --output "
            f"{args.output}`, {time.strftime('%Y-%m-%d')}, jax {jax.__version__}, four "
            "devices made of one processor.\nLargest difference from one device after "
            f"{STEPS} steps (of gradients: in the first), as a share of the largest\n"
            "value. Networks compute in float64, as in float32 a ReLU is now and then "
            "decided by rounding;\nthe loss is float32, whose rounding is 1e-07."
            f"\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
