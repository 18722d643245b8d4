"""Predicts class maps of single images of any size."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data.images import check_image
from jaxseg.data.transforms import resize_image
from jaxseg.inference.network import (
    NonFiniteScoresError,
    Refine,
    Scorer,
    are_finite,
    choose_classes,
    score_images,
)
from jaxseg.inference.scorers import entropy, network
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.resize import pad_edges
from jaxseg.parallel.mesh import SPLIT, Batch, create_parallel
from jaxseg.utils.rounding import round_up

INPUT_MULTIPLE_PX = 8
"""Images that are not resized are padded to a multiple of it, so that images of similar
sizes share a compiled program. Common video sizes such as 360x480 and 1080x1920 need no
padding."""

OUTPUT_MULTIPLE_PX = 64
"""The same for the size that scores are resized to, where padding has no effect."""


class Predictor:
    """Predicts the class of every pixel of an image of any size.

        predict = Predictor(*jaxseg.load(workdir))
        classes = predict(image)

    If the network was trained at one size, images are resized to it and the scores are
    resized back bilinearly, as in evaluation. Otherwise images keep their size and are
    padded to a multiple of 8 pixels by repeating their last row and column.

    Attributes:
        metadata: metadata of the workdir, with the names and colors of the classes.
    """

    def __init__(
        self,
        model: nn.Module | Scorer,
        variables: Variables,
        metadata: RunMetadata,
        refine: Refine | None = None,
        space: int = 1,
    ):
        """Prepares the prediction from what `jaxseg.load` returns; compiles nothing yet.

        Args:
            model: the network, or a scorer of it; see `inference.scorers`.
            variables: variables of the network or the scorer.
            metadata: metadata of the workdir.
            refine: from probabilities, images and sizes to refined probabilities.
            space: number of devices that the rows of each image are split over.

        Raises:
            ValueError: if there are fewer devices.
        """
        self.metadata = metadata
        self._parallel = create_parallel(data=1, space=space)
        self._variables = jax.device_put(variables, self._parallel.replicated)
        self._image_size = metadata.image_size
        scorer = model
        if isinstance(model, nn.Module):
            scorer = network(model, metadata.normalization)
        self._step = partial(_predict, scorer=scorer, refine=refine)
        self._refines = refine is not None
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image to classes.

        Args:
            image: uint8 [H, W, C] with the channels of the network; RGB if they are 3.

        Returns:
            Class indices, uint8 [H, W].

        Raises:
            ValueError: if the image has another dtype or shape, or is empty.
            NonFiniteScoresError: if the network's scores are NaN or infinite.
        """
        return self._run(image, with_entropy=False)[0]

    def with_entropy(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps an image to classes and the normalized entropy of the probabilities.

            -sum_k p_k log p_k / log K

        Args:
            image: as for `__call__`.

        Returns:
            Class indices, uint8 [H, W], and entropy, float16 [H, W], from 0 (one class
            is certain) to 1 (all classes are equally likely).
        """
        classes, entropies = self._run(image, with_entropy=True)
        return classes, entropies

    def _run(self, image: np.ndarray, with_entropy: bool) -> list[np.ndarray]:
        check_image(image, self.metadata.channels)
        height, width = image.shape[:2]
        multiple = INPUT_MULTIPLE_PX if self._image_size is None else OUTPUT_MULTIPLE_PX
        shape = round_up(height, multiple), round_up(width, multiple)
        batch = {"size": np.array([[height, width]], np.int32)}
        if self._image_size is None:
            batch["image"] = pad_edges(image, shape)[None]
            out_shape = None
        else:
            batch["image"] = resize_image(image, self._image_size)[None]
            out_shape = shape
            if self._refines:
                batch["original"] = pad_edges(image, shape)[None]
        predict = self._compile(out_shape, with_entropy)
        finite, *results = predict(self._variables, self._parallel.place(batch))
        if not finite[0]:
            raise NonFiniteScoresError
        # Copies, to release the padded arrays.
        return [np.array(result[0, :height, :width]) for result in results]

    def _compile(self, *static: Any) -> Callable[..., Any]:
        """The compiled step for a shape of the result, with or without entropy."""
        if static not in self._compiled:
            out_shape, with_entropy = static
            step = partial(self._step, out_shape=out_shape, with_entropy=with_entropy)
            self._compiled[static] = self._parallel.compile(step, outputs=SPLIT)
        return self._compiled[static]


def _predict(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    refine: Refine | None,
    out_shape: tuple[int, int] | None,
    with_entropy: bool,
    axis_name: None,
) -> tuple[jax.Array, ...]:
    """Whether scores are finite, classes, and normalized entropies if requested."""
    del axis_name
    scores = score_images(
        variables, batch, scorer=scorer, out_shape=out_shape, refine=refine
    )
    finite, classes = are_finite(scores, batch["size"]), choose_classes(scores)
    if not with_entropy:
        return finite, classes
    relative = entropy(scores) / math.log(max(2, scores.shape[-1]))
    return finite, classes, relative.astype(jnp.float16)
