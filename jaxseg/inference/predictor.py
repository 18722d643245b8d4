"""Class maps of single images, of any size."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data.images import check_image
from jaxseg.data.transforms import resize_image
from jaxseg.inference.scorers import Refine, Scorer, entropy, network
from jaxseg.metadata import RunMetadata
from jaxseg.models.variables import Variables
from jaxseg.ops.probabilities import log_probabilities
from jaxseg.ops.resize import resize_bilinear_to
from jaxseg.parallel.mesh import SPLIT, Batch, create_parallel
from jaxseg.utils.rounding import round_up

FED_MULTIPLE_PX = 8
"""Images fed at their own size are padded to a multiple of it: photographs of many
sizes then share compiled programs, and the usual sizes of video, 360x480 and 1080x1920
among them, pass as they are."""

SHOWN_MULTIPLE_PX = 64
"""Likewise for the size that scores are resized to, where padding changes nothing."""


class Predictor:
    """Predicts the class of every pixel of an image of any size.

        predict = Predictor(*jaxseg.load(workdir))
        classes = predict(image)

    A network trained at one size is fed at that size, and its scores are resized back
    to the image's own, bilinearly: as evaluation does it. Any other is fed the image at
    its own size, its last row and column repeated up to a multiple of 8 pixels.

    Attributes:
        metadata: of the workdir; `class_names` and `palette` say what classes mean.
    """

    def __init__(
        self,
        model: nn.Module | Scorer,
        variables: Variables,
        metadata: RunMetadata,
        refine: Refine | None = None,
        space: int = 1,
    ):
        """Takes what `jaxseg.load` returns; nothing is compiled yet.

        Args:
            model: the network, or a scorer made of it: see `inference`.
            variables: for it.
            metadata: of the workdir; `channels`, `normalization` (of a network) and
                `image_size` are used.
            refine: from probabilities, images and sizes to better probabilities.
            space: number of devices that share each image, by its rows.

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
        self._compiled: dict = {}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image to classes.

        Args:
            image: uint8 [H, W, C] of the network's channels, RGB for three.

        Returns:
            uint8 [H, W], numbers into `metadata.class_names`.

        Raises:
            ValueError: if the image is no such array, or has no pixel.
        """
        return self._run(image, uncertain=False)[0]

    def with_entropy(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps an image to classes, and says where they are uncertain.

            -sum_k p_k log p_k / log K

        Args:
            image: as above.

        Returns:
            The classes, and the entropy of the probabilities, float16 [H, W]: from 0,
            one class has all, to 1, all have the same.
        """
        return self._run(image, uncertain=True)

    def _run(self, image, uncertain):
        check_image(image, self.metadata.channels)
        size = image.shape[:2]
        resized = self._image_size is not None
        multiple = SHOWN_MULTIPLE_PX if resized else FED_MULTIPLE_PX
        shown = image
        if self._refines or not resized:
            below, right = (round_up(n, multiple) - n for n in size)
            shown = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
        fed = resize_image(image, self._image_size) if resized else shown
        batch = {"image": fed[None], "size": np.array([size], np.int32)}
        if self._refines:
            batch["original"] = shown[None]
        shape = tuple(round_up(n, multiple) for n in size) if resized else None
        predict = self._predict(shape=shape, uncertain=uncertain)
        results = predict(self._variables, self._parallel.place(batch))
        height, width = size
        # Copies, so that no padding is kept alive.
        return [None if x is None else np.array(x[0, :height, :width]) for x in results]

    def _predict(self, **static):
        key = tuple(static.values())
        if key not in self._compiled:
            step = partial(self._step, **static)
            self._compiled[key] = self._parallel.compile(step, outputs=SPLIT)
        return self._compiled[key]


def _predict(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    refine: Refine | None,
    shape: tuple[int, int] | None,
    uncertain: bool,
    axis_name: None,
) -> tuple[jax.Array, jax.Array | None]:
    """Classes and entropies of images, resized to `size` within `shape` if given."""
    del axis_name
    scores = scorer(variables, batch["image"])
    if shape is not None:
        scores = resize_bilinear_to(scores, batch["size"], shape)
    if refine is not None:
        original = batch["original"]
        probabilities = refine(jax.nn.softmax(scores), original, batch["size"])
        scores = log_probabilities(probabilities)
    classes = jnp.argmax(scores, axis=-1).astype(jnp.uint8)
    if not uncertain:
        return classes, None
    relative = entropy(scores) / math.log(max(2, scores.shape[-1]))
    return classes, relative.astype(jnp.float16)
