"""Times pooling and unpooling with their gradients against a plain copy.

    python benchmarks/pooling.py --output docs/results/pooling.md

Every number is the median over many rounds, in each of which every contestant ran
once, so that other work on the machine falls on all of them alike. A gradient is the
backward pass alone. The copy adds 1 to an array of half the bytes that the operation
has to read and write, and so moves as many.
"""

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

import flax
import flax.linen as nn
import hardware
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops import pooling

try:
    import torch
except ImportError:
    torch = None

OPERATIONS = ("pool", "pool gradient", "unpool", "unpool gradient")


def fast(x, y_grad):
    """The default path: places in windows, comparisons."""
    size = x.shape[1:3]
    (_, places), y_vjp = _vjp(pooling.max_pool_argmax, x)
    _, x_vjp = _vjp(lambda y: (pooling.max_unpool(y, places, size), ()), y_grad)
    pool = jax.jit(pooling.max_pool_argmax)
    unpool = jax.jit(lambda y, places: pooling.max_unpool(y, places, size))
    return {
        "pool": lambda: pool(x),
        "pool gradient": lambda: _pull(y_vjp, y_grad),
        "unpool": lambda: unpool(y_grad, places),
        "unpool gradient": lambda: _pull(x_vjp, x),
    }


def scatter(x, y_grad):
    """The general form: flat indices, gather and scatter."""
    size = x.shape[1:3]
    (_, indices), y_vjp = _vjp(lambda x: pooling.max_pool_indices(x, 2), x)
    _, x_vjp = _vjp(
        lambda y: (pooling.max_unpool_indices(y, indices, size), ()), y_grad
    )
    pool = jax.jit(lambda x: pooling.max_pool_indices(x, 2))
    unpool = jax.jit(lambda y, i: pooling.max_unpool_indices(y, i, size))
    return {
        "pool": lambda: pool(x),
        "pool gradient": lambda: _pull(y_vjp, y_grad),
        "unpool": lambda: unpool(y_grad, indices),
        "unpool gradient": lambda: _pull(x_vjp, x),
    }


def flax_max_pool(x, y_grad):
    """`flax.linen.max_pool`, which keeps no places: it cannot be unpooled."""
    _, y_vjp = _vjp(lambda x: (nn.max_pool(x, (2, 2), (2, 2)), ()), x)
    pool = jax.jit(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    return {
        "pool": lambda: pool(x),
        "pool gradient": lambda: _pull(y_vjp, y_grad),
    }


def pytorch(x, y_grad):
    """`torch.nn.functional`, in its own channels-last layout."""
    size = x.shape[1:3]
    x, g = (_to_torch(a).requires_grad_() for a in (x, y_grad))
    F = torch.nn.functional
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    back = F.max_unpool2d(g, indices, 2, output_size=size)
    x_grad, y_grad = x.detach(), g.detach()
    grad = torch.autograd.grad

    def unpool():
        with torch.no_grad():
            return F.max_unpool2d(g, indices, 2, output_size=size)

    def pool():
        with torch.no_grad():
            return F.max_pool2d(x, 2, return_indices=True)

    return {
        "pool": pool,
        "pool gradient": lambda: grad(y, x, y_grad, retain_graph=True),
        "unpool": unpool,
        "unpool gradient": lambda: grad(back, g, x_grad, retain_graph=True),
    }


def copy(x, y_grad):
    """What moving the bytes alone costs: of x, of y and of one byte for each place."""
    count = (x.nbytes + y_grad.nbytes + y_grad.size) // (2 * x.dtype.itemsize)
    half = jnp.zeros(count, x.dtype)
    add = jax.jit(lambda x: x + 1)
    return dict.fromkeys(OPERATIONS, lambda: add(half))


def measure(shape, dtype, rounds):
    """Median seconds of every contestant, {name: {operation: seconds}}."""
    rng = np.random.default_rng(0)
    b, h, w, c = shape
    x = jnp.asarray(rng.normal(size=shape), dtype)
    y_grad = jnp.asarray(rng.normal(size=(b, h // 2, w // 2, c)), dtype)
    contestants = {
        "copy of the same bytes": copy(x, y_grad),
        "jaxseg max_pool_argmax, max_unpool": fast(x, y_grad),
        "flax.linen.max_pool": flax_max_pool(x, y_grad),
        "jaxseg max_pool_indices, max_unpool_indices (scatter)": scatter(x, y_grad),
    }
    if torch is not None and jax.default_backend() == "cpu":
        contestants["PyTorch max_pool2d, max_unpool2d"] = pytorch(x, y_grad)
    seconds = {name: {} for name in contestants}
    for operation in OPERATIONS:
        runs = {n: f[operation] for n, f in contestants.items() if operation in f}
        times = {name: [] for name in runs}
        for k in range(rounds + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                if k >= 2:  # the first rounds compile and warm up
                    times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            seconds[name][operation] = statistics.median(values)
    return seconds


def table(seconds, title):
    """Markdown: milliseconds, and in brackets the ratio to the copy."""
    base = seconds["copy of the same bytes"]
    lines = [
        f"| {title} | {' | '.join(OPERATIONS)} |",
        "|---|" + "---:|" * len(OPERATIONS),
    ]
    for name, row in seconds.items():
        cells = [
            f"{1e3 * row[op]:.2f} ms ({row[op] / base[op]:.1f})" if op in row else "-"
            for op in OPERATIONS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Prints the tables; writes them, too, if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(2, 180, 240, 64))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    if torch is not None:
        versions["torch"] = torch.__version__
    shape = "x".join(map(str, args.shape))
    text = "\n".join(
        [
            "# Pooling and unpooling against a plain copy",
            "",
            *__doc__.strip().splitlines()[4:],
            "",
            f"* Input {shape} (B, H, W, C), windows 2x2, {args.rounds} rounds;",
            "  in brackets: times the copy.",
            f"* {hardware.describe()}",
            f"* {', '.join(f'{k} {v}' for k, v in versions.items())}, "
            f"Python {platform.python_version()}; {datetime.date.today()}",
            f"* `python {' '.join(sys.argv)}`",
            "",
            *[
                table(measure(tuple(args.shape), dtype, args.rounds), dtype) + "\n"
                for dtype in ("float32", "bfloat16")
            ],
        ]
    )
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)


def _vjp(f, x):
    y, vjp, aux = jax.vjp(f, x, has_aux=True)
    return (y, aux), vjp


_pull = jax.jit(lambda vjp, g: vjp(g))


def _to_torch(x):
    array = np.asarray(x.astype(jnp.float32)).transpose(0, 3, 1, 2)
    tensor = torch.tensor(array, dtype=getattr(torch, x.dtype.name))
    return tensor.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
