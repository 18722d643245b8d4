"""Measures the dense CRF: the lattice's error against exact kernels, and the time.

    python benchmarks/crf.py --workdir W --images camvid/val/images \
        --output docs/results/crf.md

Probabilities are those of the trained model in the workdir. Errors are those of 10
iterations with the lattice against 10 with the exact kernel, on crops around the middle
of each image; "by the CRF" is what the exact one changes of what the model says. Times
are of whole images, jitted, all 10 iterations and the building of the lattice; the best
of some rounds. CPU seconds add up all threads, and tell most where the machine is busy.
"""

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path

import hardware
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import load
from jaxseg.data.images import read_image
from jaxseg.inference import scorers
from jaxseg.ops.crf import PRESETS, dense_crf


def probabilities(path, images):
    """Of the trained model, [H, W, K] for each image."""
    model, variables, metadata = load(path)
    score = scorers.network(model, metadata.normalization)
    if metadata.image_size is not None:
        score = scorers.resized(score, tuple(metadata.image_size))
    predict = jax.jit(lambda image: jax.nn.softmax(score(variables, image[None])[0]))
    return [predict(image) for image in images]


def difference(one, other):
    """Mean and largest difference of probabilities; share of classes that differ."""
    off = np.abs(np.asarray(one) - np.asarray(other))
    changed = np.argmax(one, axis=-1) != np.argmax(other, axis=-1)
    return np.array([off.mean(), off.max(), changed.mean()])


def errors(preset, images, maps, size):
    """Two rows of the table: what the CRF changes, and what the lattice gets wrong."""
    rows = []
    for image, p in zip(images, maps):
        top, left = ((n - s) // 2 for n, s in zip(image.shape, size))
        crop = np.s_[top : top + size[0], left : left + size[1]]
        exact = dense_crf(p[crop], image[crop], **PRESETS[preset], exact=True)
        lattice = dense_crf(p[crop], image[crop], **PRESETS[preset])
        rows.append([difference(p[crop], exact), difference(lattice, exact)])
    means, largest = np.mean(rows, axis=0), np.max(rows, axis=0)
    return [
        f"{mean[0]:.4f} | {most[1]:.2f} | {mean[2]:.2%}"
        for mean, most in zip(means, largest)
    ]


def seconds(preset, image, p, rounds):
    """Of the first call, and the least of the following: wall and CPU seconds."""
    p = jax.block_until_ready(jnp.asarray(p))
    taken = []
    for _ in range(1 + rounds):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(dense_crf(p, image, **PRESETS[preset]))
        end = time.perf_counter(), time.process_time()
        taken.append([b - a for a, b in zip(start, end)])
    return taken[0], np.min(taken[1:], axis=0)


def main():
    """Prints the tables; writes them, too, if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a trained model")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--count", type=int, default=4, help="of images, evenly spaced")
    parser.add_argument("--crop", type=int, nargs=2, default=(80, 112))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    paths = sorted(args.images.iterdir())
    paths = paths[:: max(1, len(paths) // args.count)][: args.count]
    images = [read_image(path, 3) for path in paths]
    maps = probabilities(args.workdir, images)
    shape = "x".join(map(str, maps[0].shape))
    lines = [
        "# The dense CRF: error and time",
        "",
        __doc__.strip().split("\n\n")[2],
        "",
        f"* {len(images)} images, probabilities {shape}; crops of "
        f"{args.crop[0]}x{args.crop[1]}; best of {args.rounds} rounds.",
        f"* {hardware.describe()}",
        f"* jax {jax.__version__}, Python {platform.python_version()}; "
        f"{datetime.date.today()}",
        f"* `python {' '.join(sys.argv)}`",
        "",
        "| preset | | mean difference | largest | other class |",
        "|---|---|---:|---:|---:|",
    ]
    for preset in PRESETS:
        changes, wrong = errors(preset, images, maps, args.crop)
        lines.append(f"| {preset} | by the CRF | {changes} |")
        lines.append(f"| | by the lattice | {wrong} |")
    lines += [
        "",
        "| preset | first call, with compiling | seconds | CPU seconds |",
        "|---|---:|---:|---:|",
    ]
    for preset in PRESETS:
        first, best = seconds(preset, images[0], maps[0], args.rounds)
        lines.append(f"| {preset} | {first[0]:.1f} s | {best[0]:.2f} | {best[1]:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)


if __name__ == "__main__":
    main()
