"""What a device holds when the rows of large images are split over several.

    python -m benchmarks.space_memory --output docs/results/space_memory.md

Compiles the train step of U-Net and SegNet for one image of 2048x4096, for 1, 4 and 8
devices that share it, and asks XLA's memory analysis for the bytes of each device.
Nothing is trained; devices are made of the processor. Takes minutes and little memory.
"""

import argparse
import time
from pathlib import Path

import jax

from jaxseg.losses import cross_entropy
from jaxseg.parallel.mesh import create_parallel
from jaxseg.training import default_config
from jaxseg.training.setup import TrainingSetup
from jaxseg.weights.mapping import IMAGENET

SIZE, CLASSES = (2048, 4096), 19
DEVICES = (1, 4, 8)


def step_memory(name: str, size: tuple[int, int], devices: int) -> tuple[float, float]:
    """GiB of arguments and of temporary arrays on each device that shares an image.

    Args:
        name: of the model.
        size: height and width of the image.
        devices: how many share it.
    """
    config = default_config()
    config.model.name = name
    config.train.batch_size = 1
    program = TrainingSetup(
        config,
        create_parallel(data=1, space=devices),
        num_classes=CLASSES,
        image_shape=(*size, 3),
        normalization=IMAGENET,
        loss_fn=cross_entropy,
    )
    compiled = program.train_step.lower(program.state, program.batch).compile()
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes / 2**30,
        memory.temp_size_in_bytes / 2**30,
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["unet", "segnet"])
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    lines = [
        "| network | devices | arguments, GiB | temporary, GiB | share of one device's |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines))
    for name in args.models:
        whole = None
        for devices in DEVICES:
            arguments, temporary = step_memory(name, SIZE, devices)
            whole = whole or temporary
            lines.append(
                f"| {name} | {devices} | {arguments:.2f} | {temporary:.1f} | "
                f"{temporary / whole:.3f} |"
            )
            print(lines[-1], flush=True)
    if args.output:
        table = "\n".join(lines)
        args.output.write_text(
            "# Memory of images split over space\n\n"
            f"`python -m benchmarks.space_memory --output {args.output}`, "
            f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, compiled for "
            "processors.\nThe train step for one image of "
            f"{'x'.join(map(str, SIZE))} in float32, {CLASSES} classes, full width; "
            f"bytes of each device by XLA's memory\nanalysis.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
