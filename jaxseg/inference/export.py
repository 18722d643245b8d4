"""Exports a trained network as a file that runs with JAX and without jaxseg.

The file is StableHLO as `jax.export` writes it: a function from images, uint8
[B, H, W, C], to classes or probabilities at the images' own size. Weights, normalisation
and resizing are in it. What its user needs to know stands beside it in JSON.
"""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxseg.inference.predictor import FED_MULTIPLE_PX, Predictor
from jaxseg.inference.scorers import network
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.image_resize import resize_image
from jaxseg.ops.resize import resize_bilinear_to
from jaxseg.utils.rounding import round_up

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUTS = ("classes", "probabilities")

TOLERANCE = 0.01
"""By how much of the largest score the file may differ from the network: what another
order of summing makes in bfloat16. A wrong function is off by the scores themselves."""


def export_network(
    model: nn.Module,
    variables: Variables,
    metadata: RunMetadata,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    output: str = "classes",
) -> export.Exported:
    """Makes one function of a network and all that is done around it.

    It gives what `Predictor` gives: a network trained at one size is fed at that size
    and its logits are resized back; any other is fed the image itself, continued to a
    multiple of 8 pixels.

    Args:
        model: the network; this and the next two are what `jaxseg.load` returns.
        variables: of the model.
        metadata: at least `model`, `channels`, `normalization` and `image_size`.
        platforms: to compile for, of `PLATFORMS`; none of them needs to be here.
        batch: number of images; None for any, chosen at each call.
        size: height and width of the images, in pixels; None for any, likewise.
        output: "classes", uint8 [B, H, W], or "probabilities", float32 [B, H, W, K].

    Returns:
        The function; its `call` takes images, its `serialize` gives bytes.

    Raises:
        ValueError: if a platform or output is unknown, or the network cannot be
            written down for images of any size or number.
    """
    for value, known in [(output, OUTPUTS), *((name, PLATFORMS) for name in platforms)]:
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}.")
    height, width = ("h", "w") if size is None else size
    shape = f"{'b' if batch is None else batch}, {height}, {width}"
    shape = export.symbolic_shape(f"{shape}, {metadata.channels}")
    function = jax.jit(
        partial(
            _output, model=model, variables=variables, metadata=metadata, output=output
        )
    )
    try:
        return export.export(function, platforms=tuple(platforms))(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )
    # Code that asks an unknown size a question fails in any of JAX's ways, or decides
    # that the size is wrong.
    except Exception as error:
        fixed = {"size": size, "batch": batch}
        missing = [name for name, value in fixed.items() if value is None]
        if not missing:
            raise
        raise DynamicShapeError(
            f"{metadata.model_name} cannot be exported for images of any "
            f"{' and '.join(missing)}: {str(error).splitlines()[0]}",
            missing,
        ) from error


class DynamicShapeError(ValueError):
    """A network cannot be exported without a fixed image size or batch size.

    Attributes:
        missing: arguments of `export_network` that were None: "size", "batch".
    """

    def __init__(self, message: str, missing: Sequence[str]):
        super().__init__(message)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class Agreement:
    """How an exported function compares with the network it was made of.

    Attributes:
        shapes: of the images that both were given, [B, H, W, C].
        pixels: in them.
        differing: pixels whose class differs.
        error: largest difference of scores, as a share of the largest score.
    """

    shapes: tuple[tuple[int, ...], ...]
    pixels: int
    differing: int
    error: float


def verify(
    exported: export.Exported,
    model: nn.Module,
    variables: Variables,
    metadata: RunMetadata,
) -> Agreement:
    """Runs an exported function against `Predictor` on drawn images of several sizes.

    Args:
        exported: from `export_network`, with the platform of this process among its.
        model: what it was made of, as are the next two.
        variables: of the model.
        metadata: as for `Predictor`.

    Returns:
        How they compare. Where classes differ, the error is how far apart the network
        itself has the two.

    Raises:
        ValueError: if they differ by more than `TOLERANCE`.
    """
    predict = Predictor(model, variables, metadata)
    logits = jax.jit(
        partial(_logits, model=model, variables=variables, metadata=metadata)
    )
    rng = np.random.default_rng(0)
    shapes = _shapes(exported, metadata.image_size)
    pixels, differing, error = 0, 0, 0.0
    for shape in shapes:
        image = _draw(rng, shape)
        result = np.asarray(exported.call(image))
        scores = np.asarray(logits(image))
        classes = result.argmax(axis=-1) if result.ndim == 4 else result
        live = np.stack([predict(one) for one in image])
        largest = np.abs(scores).max()
        for chosen in (classes, live):
            chosen = np.take_along_axis(scores, chosen[..., None].astype(int), axis=-1)
            lost = np.max(scores, axis=-1, keepdims=True) - chosen
            error = max(error, float(lost.max() / largest))
        if result.ndim == 4:
            expected = np.asarray(jax.nn.softmax(scores))
            error = max(error, float(np.abs(result - expected).max()))
        pixels += live.size
        differing += int(np.sum(classes != live))
    if not error <= TOLERANCE:
        raise ValueError(
            f"The exported function is not the network: {differing} of {pixels} pixels "
            f"differ, and scores by {error:.1%}."
        )
    return Agreement(tuple(shapes), pixels, differing, error)


def write(
    path: str | os.PathLike, exported: export.Exported, metadata: RunMetadata
) -> None:
    """Writes an exported function and, beside it, what its user needs to know.

    Args:
        path: of the function; the description's differs in its suffix, .json. Each
            appears whole or not at all.
        exported: from `export_network`.
        metadata: of the workdir, with `class_names` and `palette`.

    Raises:
        ValueError: if the two would be one file.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    if beside == path:
        raise ValueError(f"{path} is where the description goes; name it *.stablehlo.")
    text = json.dumps(describe_export(exported, metadata))
    parts = {path: bytes(exported.serialize()), beside: text.encode()}
    aside = {p: p.with_name(f".{p.name}.{uuid.uuid4().hex}") for p in parts}
    try:
        for place, content in parts.items():
            aside[place].write_bytes(content)
        for place, written in aside.items():
            written.replace(place)
    finally:
        for written in aside.values():
            written.unlink(missing_ok=True)


def describe_export(exported: export.Exported, metadata: RunMetadata) -> dict[str, Any]:
    """What there is to know of an exported function; JSON takes it as it is."""
    (given,), (gives,) = exported.in_avals, exported.out_avals
    kept = ("model", "class_names", "palette", "normalization", "image_size", "step")
    description = metadata.to_json()
    return {
        "input": {"dtype": str(given.dtype), "shape": _written(given.shape)},
        "output": {"dtype": str(gives.dtype), "shape": _written(gives.shape)},
        "platforms": list(exported.platforms),
        "versions": {name: packages.version(name) for name in ("jaxseg", "jax")},
        **{key: description[key] for key in kept},
    }


def _output(image, *, output, **network):
    logits = _logits(image, **network)
    if output == "probabilities":
        return jax.nn.softmax(logits, axis=-1)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def _logits(image, *, model, variables, metadata):
    """Logits of images, uint8 [B, H, W, C], at their own size: float32 [B, H, W, K]."""
    batch, height, width, _ = image.shape
    score = network(model, metadata.normalization)
    if metadata.image_size is not None:
        logits = score(variables, resize_image(image, metadata.image_size))
        size = jnp.stack([jnp.asarray(height), jnp.asarray(width)])
        size = jnp.broadcast_to(size, (batch, 2))
        return resize_bilinear_to(logits, size, (height, width))
    for axis in (1, 2):
        # Clipped to the image, what is beyond the last pixel is that pixel again.
        pixels = jnp.arange(round_up(image.shape[axis], FED_MULTIPLE_PX))
        image = jnp.take(image, pixels, axis=axis, mode="clip")
    return score(variables, image)[:, :height, :width]


def _shapes(exported, image_size):
    """Shapes of images to try; of any size, larger and smaller than what is fed."""
    shape = exported.in_avals[0].shape
    sizes = [shape[1:3]]
    if export.is_symbolic_dim(shape[1]):
        sizes = [(96, 128), (75, 53)]
        if image_size is not None:
            height, width = image_size
            sizes = [(height, width), (height + 9, width + 5), (height, width // 2 + 1)]
    batches = [shape[0]] * len(sizes)
    if export.is_symbolic_dim(shape[0]):
        batches = [2] + [1] * (len(sizes) - 1)
    return [(b, *size, shape[3]) for b, size in zip(batches, sizes)]


def _draw(rng, shape):
    """Images of coarse squares under fine noise, uint8."""
    batch, height, width, channels = shape
    coarse = rng.integers(
        0, 224, (batch, height // 16 + 1, width // 16 + 1, channels), np.uint8
    )
    image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return image + rng.integers(0, 32, shape, np.uint8)


def _written(shape):
    return [n if isinstance(n, int) else str(n) for n in shape]
