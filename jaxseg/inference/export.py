"""Exports a trained network as a file that runs with JAX and without jaxseg.

The file is StableHLO written by `jax.export`: a function from images, uint8 [B, H, W, C],
to classes or probabilities at the original size, including weights, normalization and
resizing. A JSON file beside it describes classes, colors and shapes.
"""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
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

from jaxseg.inference.network import choose_classes
from jaxseg.inference.predictor import INPUT_MULTIPLE_PX, Predictor
from jaxseg.inference.scorers import network, resized
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.resize import pad_edges
from jaxseg.utils.files import atomic_path
from jaxseg.utils.rounding import round_up

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUTS = ("classes", "probabilities")

TOLERANCE = 0.01
"""Largest difference from the network, relative to its largest score. In bfloat16 another
order of summation makes about this difference; a wrong function makes one of order 1."""


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
    """Exports a network with its normalization, resizing and padding as one function.

    It computes the same as `Predictor`, from what `jaxseg.load` returns.

    Args:
        model: the network.
        variables: variables of the network.
        metadata: metadata of the workdir.
        platforms: platforms to export for, of `PLATFORMS`; none needs to be available.
        batch: batch size; None if it is chosen at each call.
        size: (height, width) of the images in pixels; None if chosen at each call.
        output: "classes", uint8 [B, H, W], or "probabilities", float32 [B, H, W, K].

    Returns:
        The exported function, with methods `call` and `serialize`.

    Raises:
        ValueError: if a platform or output is unknown.
        DynamicShapeError: if the network requires a fixed batch size or image size.
    """
    for value, known in [(output, OUTPUTS), *((name, PLATFORMS) for name in platforms)]:
        if value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}.")
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
    except Exception as error:  # JAX and models raise many kinds for symbolic sizes
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
    """Comparison of an exported function with its network.

    Attributes:
        shapes: shapes of the test images, [B, H, W, C].
        pixels: number of their pixels.
        differing: number of pixels whose classes differ.
        error: largest difference of scores, relative to the largest score.
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
    """Compares an exported function with `Predictor` on random images.

    Args:
        exported: from `export_network`, for a platform of this process.
        model: the exported network.
        variables: its variables.
        metadata: its metadata.

    Returns:
        The comparison. If classes differ, the error is the difference between their
        scores in the network.

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
            f"The exported function differs from the network: {differing} of {pixels} "
            f"pixels have other classes, and scores differ by {error:.1%}."
        )
    return Agreement(tuple(shapes), pixels, differing, error)


def write(
    path: str | os.PathLike, exported: export.Exported, metadata: RunMetadata
) -> None:
    """Writes an exported function and a JSON description beside it, atomically.

    Args:
        path: file of the function; the description has the suffix .json instead.
        exported: from `export_network`.
        metadata: metadata of the workdir.

    Raises:
        ValueError: if the path has the suffix .json.
    """
    path = Path(path)
    description = path.with_suffix(".json")
    if description == path:
        raise ValueError(
            f"{path} is the file of the description; use a name such as "
            f"{path.with_suffix('.stablehlo')}."
        )
    text = json.dumps(describe_export(exported, metadata))
    files = {path: bytes(exported.serialize()), description: text.encode()}
    with ExitStack() as stack:  # neither file is replaced unless both are written
        for target, content in files.items():
            stack.enter_context(atomic_path(target)).write_bytes(content)


def describe_export(exported: export.Exported, metadata: RunMetadata) -> dict[str, Any]:
    """Describes an exported function as JSON values."""
    (given,), (gives,) = exported.in_avals, exported.out_avals
    kept = ("model", "class_names", "palette", "normalization", "image_size", "step")
    description = metadata.to_json()
    return {
        "input": {"dtype": str(given.dtype), "shape": _shape_to_json(given.shape)},
        "output": {"dtype": str(gives.dtype), "shape": _shape_to_json(gives.shape)},
        "platforms": list(exported.platforms),
        "versions": {name: packages.version(name) for name in ("jaxseg", "jax")},
        **{key: description[key] for key in kept},
    }


def _output(image: jax.Array, *, output: str, **network: Any) -> jax.Array:
    logits = _logits(image, **network)
    if output == "probabilities":
        return jax.nn.softmax(logits, axis=-1)
    return choose_classes(logits)


def _logits(
    image: jax.Array, *, model: nn.Module, variables: Variables, metadata: RunMetadata
) -> jax.Array:
    """Logits, float32 [B, H, W, K], of images, uint8 [B, H, W, C], at their own size."""
    score = network(model, metadata.normalization)
    if metadata.image_size is not None:
        return resized(score, metadata.image_size)(variables, image)
    height, width = image.shape[1:3]
    padded = pad_edges(
        image,
        (round_up(height, INPUT_MULTIPLE_PX), round_up(width, INPUT_MULTIPLE_PX)),
    )
    return score(variables, padded)[:, :height, :width]


def _shapes(
    exported: export.Exported, image_size: tuple[int, int] | None
) -> list[tuple[int, ...]]:
    """Shapes of test images; sizes above and below `image_size` if it is dynamic."""
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


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Images of coarse squares with fine noise, uint8."""
    batch, height, width, channels = shape
    coarse = rng.integers(
        0, 224, (batch, height // 16 + 1, width // 16 + 1, channels), np.uint8
    )
    image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return image + rng.integers(0, 32, shape, np.uint8)


def _shape_to_json(shape: Sequence[Any]) -> list[int | str]:
    return [n if isinstance(n, int) else str(n) for n in shape]
