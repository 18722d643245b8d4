"""Scorers: one forward pass, or averages over augmentations, masks, tiles and networks.

A scorer is a function of variables and images, uint8 [B, H, W, C], that returns scores,
float32 [B, H, W, K]: log-probabilities up to a constant at each pixel. A scorer can wrap
another one, so that the averages can be combined. Averages are taken of probabilities.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from jaxseg.inference.network import Refine, Scorer, predict_logits, score_images
from jaxseg.models.freezing import freeze, frozen_layers
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.image_resize import resize_image
from jaxseg.ops.probabilities import log_probabilities
from jaxseg.ops.resize import pad_edges, resize_bilinear
from jaxseg.ops.tiling import DEFAULT_OVERLAP, tile_starts, weigh


def network(model: nn.Module, normalization: Normalization) -> Scorer:
    """One forward pass; networks without padding see mirrored borders.

    Args:
        model: the network.
        normalization: normalization of the images.
    """
    score = partial(predict_logits, model=model, normalization=normalization)
    return _of_whole_images(score, model)


def mirrored(scorer: Scorer, input_size: Callable[[int], tuple[int, int]]) -> Scorer:
    """Scores of whole images by a network that scores only the center of its input.

    The image is extended beyond its borders by reflection.

    Args:
        scorer: scorer whose result is smaller than its input, by the same margin on all
            sides.
        input_size: from a number of pixels to score, to the input's pixels required and
            the scores' pixels that result; see `unet.valid_size`.

    Source: Ronneberger et al., U-Net, https://arxiv.org/abs/1505.04597, fig. 2.
    """

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        height, width = image.shape[1:3]
        margins = []
        for pixels in (height, width):
            required, scored = input_size(pixels)
            before = (required - scored) // 2
            margins.append((before, required - pixels - before))
        padded = jnp.pad(image, ((0, 0), *margins, (0, 0)), mode="reflect")
        return scorer(variables, padded)[:, :height, :width]

    return score


def context(model: nn.Module) -> int:
    """Margin in pixels around its scores that a network without padding needs, or 0."""
    input_size = getattr(model, "input_size", None)
    if input_size is None:
        return 0
    required, scored = input_size(1)
    return (required - scored) // 2


def resized(scorer: Scorer, size: tuple[int, int]) -> Scorer:
    """Scores of images that are resized first, for a network trained at one size.

    Images are resized as by `jaxseg.data.transforms.resize_image`, and scores are
    resized back bilinearly. The height and width of the images may be symbolic.

    Args:
        scorer: scorer of the resized images.
        size: (height, width) to resize images to.
    """

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        count, height, width, _ = image.shape
        original = jnp.stack([jnp.asarray(height), jnp.asarray(width)])
        batch = {
            "image": resize_image(image, size),
            "size": jnp.broadcast_to(original, (count, 2)),
        }
        return score_images(variables, batch, scorer=scorer, out_shape=(height, width))

    return score


def test_time_augmentation(
    scorer: Scorer, scales: Sequence[float] = (0.75, 1.0, 1.25), flip: bool = True
) -> Scorer:
    """Test-time augmentation: the average over scales and horizontal flips.

    Args:
        scorer: scorer of each augmented image.
        scales: factors on height and width, rounded to pixels; resized bilinearly.
        flip: whether each scale is also scored flipped left to right.

    Raises:
        ValueError: if there is no scale, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: give one or more, all positive.")

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        height, width = image.shape[1:3]
        image = image.astype(jnp.float32)

        def one(augmented: jax.Array) -> jax.Array:
            scores = resize_bilinear(scorer(variables, augmented), (height, width))
            return jax.nn.log_softmax(scores)

        def scaled(scale: float) -> jax.Array:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            augmented = resize_bilinear(image, size)
            if not flip:
                return one(augmented)
            # A loop, so that both are scored by one compiled network.
            pair = jnp.stack([augmented, augmented[:, :, ::-1]])
            straight, flipped = jax.lax.map(one, pair)
            return jnp.logaddexp(straight, flipped[:, :, ::-1])

        total = scaled(scales[0])
        for scale in scales[1:]:
            total = jnp.logaddexp(total, scaled(scale))
        return total - math.log(len(scales) * (2 if flip else 1))

    return score


def dropout_samples(
    model: nn.Module, normalization: Normalization, samples: int = 20, seed: int = 0
) -> Scorer:
    """Monte Carlo dropout: the average over dropout masks; BatchNorm as in inference.

    Args:
        model: a network with dropout.
        normalization: normalization of the images.
        samples: number of masks.
        seed: random seed of the masks; the images of a batch have different masks.

    Returns:
        A scorer; it raises ValueError for a model without dropout.

    Raises:
        ValueError: if `samples` is not positive.

    Source: Kendall et al., Bayesian SegNet, https://arxiv.org/abs/1511.02680, sec. 3.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; it must be at least 1.")

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        stats = variables["batch_stats"]
        layers = frozen_layers(stats, ("*",)) if jax.tree.leaves(stats) else frozenset()

        def one(key: jax.Array | None) -> jax.Array:
            with freeze(layers):
                logits, _ = model.apply(
                    variables,
                    normalization(image),
                    train=True,
                    mutable=["batch_stats"],
                    rngs={} if key is None else {"dropout": key},
                )
            return jax.nn.log_softmax(logits)

        keys = jax.random.split(jax.random.key(seed), samples)
        shape = jax.eval_shape(one, keys[0])
        if _runs_without_keys(one):
            raise ValueError(
                "This model has no dropout to sample. Train a model with dropout, such "
                "as dropout=0.5 in its keyword arguments, or average over several "
                "checkpoints instead."
            )
        total, _ = jax.lax.scan(
            lambda total, key: (jnp.logaddexp(total, one(key)), None),
            jnp.full(shape.shape, -jnp.inf),
            keys,
        )
        return total - math.log(samples)

    return _of_whole_images(score, model)


def ensemble(scorer: Scorer) -> Scorer:
    """The average over networks of the same model, such as checkpoints of a run.

    Args:
        scorer: scorer of each network.

    Returns:
        A scorer for the variables of all networks, from `stack`.
    """

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        scores = jax.nn.log_softmax(jax.vmap(scorer, (0, None))(variables, image))
        return jax.nn.logsumexp(scores, axis=0) - math.log(len(scores))

    return score


def stack(networks: Sequence[Variables]) -> Variables:
    """Stacks the variables of several networks of the same model, for `ensemble`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def refined(scorer: Scorer, refine: Refine) -> Scorer:
    """Scores refined by the image, as by a CRF.

    Args:
        scorer: scorer of the images.
        refine: from probabilities, images and sizes to refined probabilities.
    """

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        size = jnp.tile(jnp.array(image.shape[1:3], jnp.int32), (len(image), 1))
        batch = {"image": image, "size": size}
        return score_images(variables, batch, scorer=scorer, refine=refine)

    return score


def tiles(
    scorer: Scorer,
    size: tuple[int, int],
    overlap: float = DEFAULT_OVERLAP,
    margin: int = 0,
) -> Scorer:
    """The average over overlapping tiles, weighted by a Gaussian around their centers.

    Args:
        scorer: scorer of each tile.
        size: (height, width) of a tile, in pixels; smaller images are padded to it by
            repeating their last row and column.
        overlap: smallest fraction of a tile's side that neighboring tiles share, in
            [0, 1).
        margin: pixels along a tile's edges that are not used, except at the edges of
            the image. If it is the radius of the network's receptive field, the result
            equals that of the whole image.

    Returns:
        A scorer; it raises ValueError for an overlap smaller than two margins.
    """

    def score(variables: Variables, image: jax.Array) -> jax.Array:
        height, width = image.shape[1:3]
        sides = max(height, size[0]), max(width, size[1])
        image = pad_edges(image, sides)
        starts = [tile_starts(n, m, overlap, margin) for n, m in zip(sides, size)]
        corners = jnp.array(list(itertools.product(*starts)))

        def cut(array: jax.Array, corner: jax.Array) -> jax.Array:
            at = (0, *corner, 0)
            return jax.lax.dynamic_slice(array, at, (len(array), *size, array.shape[3]))

        def add(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
            scores = scorer(variables, cut(image, corner))
            weighted = weigh(scores, corner, jnp.array(sides), margin)
            patch = cut(total, corner) + weighted
            return jax.lax.dynamic_update_slice(total, patch, (0, *corner, 0)), None

        tile = jax.ShapeDtypeStruct((len(image), *size, image.shape[3]), image.dtype)
        classes = jax.eval_shape(scorer, variables, tile).shape[3]
        total = jnp.zeros((*image.shape[:3], classes + 1))
        total, _ = jax.lax.scan(add, total, corners)
        total = total[:, :height, :width]
        return log_probabilities(total[..., :-1]) - jnp.log(total[..., -1:])

    return score


def entropy(scores: jax.Array) -> jax.Array:
    """Entropy of the probabilities of scores [..., K], in nats."""
    logs = jax.nn.log_softmax(scores)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def _of_whole_images(scorer: Scorer, model: nn.Module) -> Scorer:
    input_size = getattr(model, "input_size", None)
    return scorer if input_size is None else mirrored(scorer, input_size)


def _runs_without_keys(score: Callable[[None], Any]) -> bool:
    try:
        jax.eval_shape(score, None)
    except InvalidRngError:
        return False
    return True
