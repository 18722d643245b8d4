"""Writes docs/models.md: every named model with its size, cost and source, and the grid.

    python benchmarks/models.py --output docs/models.md

Parameters are those of 11 classes and color images. FLOPs are two per multiplication
and addition, of one image forward, counted from the program's convolutions and matrix
products. Memory is what XLA's own analysis of the compiled training gradient says it
needs beside parameters, gradient and image (`temp_size_in_bytes`): the activations at
their peak. Nothing is run, but compiling takes minutes; `--no-memory` leaves it out.
"""

import argparse
import inspect
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from jaxseg.models import (
    create_model,
    list_blocks,
    list_encoders,
    list_models,
    list_skips,
    list_upsamplers,
)
from jaxseg.models.components import encoder_features
from jaxseg.models.outputs import apply_in_training
from jaxseg.models.registry import MODELS
from jaxseg.models.unet import valid_size

NUM_CLASSES = 11
SIZES = ((360, 480), (512, 512))
COMMAND = "python benchmarks/models.py --output docs/models.md"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--models", nargs="*", default=list_models())
    args = parser.parse_args()
    lines = [
        "# Models",
        "",
        f"Written by `{COMMAND}` with JAX {jax.__version__} on "
        f"{jax.devices()[0].device_kind}.",
        "",
        f"With {NUM_CLASSES} classes and each model's own defaults. FLOPs are two per "
        "multiplication and addition of convolutions and matrix products, one image "
        "forward. Memory is what XLA's analysis of the compiled program says the "
        "gradient of one 360x480 image in float32 needs beside parameters, gradient "
        "and image. `unet_valid` is given the least image that has logits of that size. "
        "DeconvNet takes 193x193 pixels or more.",
        "",
        "| model | parameters | GFLOPs 360x480 | GFLOPs 512x512 | memory, MiB | source |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in args.models:
        row = _row(name, with_memory=not args.no_memory)
        print(row, flush=True)
        lines.append(row)
    lines += ["", *_grid()]
    args.output.write_text("\n".join(lines) + "\n")


def _row(name: str, with_memory: bool) -> str:
    model = create_model(name, NUM_CLASSES)
    flops = []
    for size in SIZES:
        variables, image = _shapes(model, _fitting(name, size))
        jaxpr = jax.make_jaxpr(partial(_forward, model))(variables, image)
        flops.append(f"{_flops(jaxpr.jaxpr) / 1e9:.1f}")
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    mib = ""
    if with_memory:
        variables, image = _shapes(model, _fitting(name, SIZES[0]))
        gradient = jax.jit(partial(_gradient, model))
        analysis = gradient.lower(variables, image).compile().memory_analysis()
        mib = f"{analysis.temp_size_in_bytes / 2**20:,.0f}"
    source = _source(name)
    return f"| `{name}` | {parameters:,} | {' | '.join(flops)} | {mib} | {source} |"


def _fitting(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The least size of image that gives logits of this size."""
    if name == "unet_valid":
        return tuple(valid_size(n)[0] for n in size)
    return size


def _shapes(model, size):
    key = jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, image), image


def _forward(model, variables, image):
    return model.apply(variables, image, train=False)


def _gradient(model, variables, image):
    def loss(params):
        output = apply_in_training(
            model, variables | {"params": params}, image, jax.random.key(0)
        )
        maps = [output.logits, *(logits for _, logits in output.auxiliary)]
        return sum(jnp.sum(jnp.square(x)) for x in maps), output.batch_stats

    return jax.grad(loss, has_aux=True)(variables["params"])


def _flops(jaxpr) -> int:
    """Of all convolutions and matrix products, those in inner programs too."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            # Each output cell: a kernel's height, width and input channels of a group.
            kernel = eqn.invars[1].aval.shape
            out = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * eqn.outvars[0].aval.size * math.prod(kernel) // kernel[out]
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += (
                2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            )
        for inner in jaxprs_in_params(eqn.params):
            total += _flops(inner)
    return total


def _source(name: str) -> str:
    """The first reference of the model's own docstring, or else of its file's."""
    builder = getattr(MODELS[name], "func", MODELS[name])
    module = inspect.getmodule(builder)
    words = f"{builder.__doc__} {module.__doc__}".split()
    urls = [word.strip(".,;()") for word in words if word.startswith("https")]
    paper = f"[arXiv:{urls[0].rpartition('/')[2]}]({urls[0]}), " if urls else ""
    return f"{paper}`jaxseg/models/{Path(module.__file__).name}`"


def _grid() -> list[str]:
    lines = [
        "## The grid",
        "",
        '`create_model("encoder_decoder", num_classes, encoder=..., skip=..., '
        "upsampler=..., block=...)` takes any of these; `pytest "
        "tests/models/encoder_decoder_test.py` drives every encoder x skip x upsampler.",
        "",
        f"* skips: {_names(list_skips())}",
        f"* upsamplers: {_names(list_upsamplers())}; `unpool` where the encoder "
        "max-pools at every level",
        f"* blocks: {_names(list_blocks())}",
        "",
        "| encoder | parameters | strides | channels | unpool |",
        "|---|---:|---|---|---|",
    ]
    for name in list_encoders():
        encoder = create_model("encoder_decoder", 1, encoder=name).encoder
        variables, _ = _shapes(encoder, (64, 64))
        features = encoder_features(encoder).merged()
        lines.append(
            f"| `{name}` "
            f"| {sum(x.size for x in jax.tree.leaves(variables['params'])):,} "
            f"| {', '.join(map(str, features.strides))} "
            f"| {', '.join(str(x.shape[-1]) for x in features.maps)} "
            f"| {'no' if None in features.places[1:] else 'yes'} |"
        )
    return lines


def _names(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
