"""From images to scores: by one pass, or averaged over views, masks, tiles, networks.

A scorer is a function of variables and images, uint8 [B, H, W, C], to scores, float32
[B, H, W, K]: logarithms of probabilities, but for a constant at each pixel. Scorers wrap
each other, so that any of these averages can be taken of any other. What is averaged are
probabilities.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from jaxseg.inference.network import predict_logits
from jaxseg.models.freezing import freeze, frozen_layers
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.image_resize import resize_image
from jaxseg.ops.probabilities import log_probabilities
from jaxseg.ops.resize import resize_bilinear
from jaxseg.ops.tiling import tile_starts, weigh

Scorer = Callable[[Variables, jax.Array], jax.Array]
Refine = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def network(model: nn.Module, normalization: Normalization) -> Scorer:
    """One pass through a network: its logits, `mirrored` where it needs that.

    Args:
        model: the network.
        normalization: of the image.
    """
    score = partial(predict_logits, model=model, normalization=normalization)
    return _of_whole_images(score, model)


def mirrored(scorer: Scorer, input_size: Callable[[int], tuple[int, int]]) -> Scorer:
    """The scores of whole images, where a network scores the middle of them alone.

    The image is continued beyond its borders by its mirror image.

    Args:
        scorer: of images larger than the scores that it gives, by the same on all sides.
        input_size: from a height or width in pixels to what to feed for so many scores,
            and how many come; such as `unet.valid_size`.

    Source: Ronneberger et al., U-Net, https://arxiv.org/abs/1505.04597, fig. 2.
    """

    def score(variables, image):
        height, width = image.shape[1:3]
        margins = []
        for pixels in (height, width):
            fed, left = input_size(pixels)
            before = (fed - left) // 2
            margins.append((before, fed - pixels - before))
        fed = jnp.pad(image, ((0, 0), *margins, (0, 0)), mode="reflect")
        return scorer(variables, fed)[:, :height, :width]

    return score


def context(model: nn.Module) -> int:
    """Pixels around what it scores that a network without padding sees; 0 of others."""
    input_size = getattr(model, "input_size", None)
    if input_size is None:
        return 0
    fed, left = input_size(1)
    return (fed - left) // 2


def resized(scorer: Scorer, size: tuple[int, int]) -> Scorer:
    """The scores of images fed at another size, as a network's that was trained at one.

    Args:
        scorer: of the resized images.
        size: height and width to feed; images are resized as `jaxseg.data` does it, and
            scores back, bilinearly.
    """

    def score(variables, image):
        scores = scorer(variables, resize_image(image, size))
        return resize_bilinear(scores, image.shape[1:3])

    return score


def test_time_augmentation(
    scorer: Scorer, scales: Sequence[float] = (0.75, 1.0, 1.25), flip: bool = True
) -> Scorer:
    """The average over an image resized and mirrored: test-time augmentation.

    Args:
        scorer: of each view.
        scales: factors on height and width, rounded to pixels; resized bilinearly.
        flip: whether each is also taken mirrored left and right.

    Raises:
        ValueError: if there is no scale, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: give one or more, all positive.")

    def score(variables, image):
        size = image.shape[1:3]
        shown = image.astype(jnp.float32)

        def one(view):
            return jax.nn.log_softmax(resize_bilinear(scorer(variables, view), size))

        def scaled(scale):
            view = resize_bilinear(shown, [max(1, round(s * scale)) for s in size])
            if not flip:
                return one(view)
            # A loop, so that both pass through one compiled network.
            straight, mirrored = jax.lax.map(one, jnp.stack([view, view[:, :, ::-1]]))
            return jnp.logaddexp(straight, mirrored[:, :, ::-1])

        total = scaled(scales[0])
        for scale in scales[1:]:
            total = jnp.logaddexp(total, scaled(scale))
        return total - math.log(len(scales) * (2 if flip else 1))

    return score


def dropout_samples(
    model: nn.Module, normalization: Normalization, samples: int = 20, seed: int = 0
) -> Scorer:
    """The average over dropout masks, BatchNorm as in inference: Bayesian SegNet.

    Args:
        model: the network, with dropout in it.
        normalization: of the image.
        samples: number of masks.
        seed: of the masks; image i of a batch has masks of its own.

    Returns:
        A scorer; it raises ValueError for a model without dropout.

    Source: Kendall et al., Bayesian SegNet, https://arxiv.org/abs/1511.02680, sec. 3.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; take at least 1.")

    def score(variables, image):
        stats = variables["batch_stats"]
        layers = frozen_layers(stats, ("*",)) if jax.tree.leaves(stats) else frozenset()

        def one(key):
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
                "This model has no dropout to sample; give it some (dropout=0.5 in its "
                "parts) and train it, or average over several checkpoints."
            )
        total, _ = jax.lax.scan(
            lambda total, key: (jnp.logaddexp(total, one(key)), None),
            jnp.full(shape.shape, -jnp.inf),
            keys,
        )
        return total - math.log(samples)

    return _of_whole_images(score, model)


def ensemble(scorer: Scorer) -> Scorer:
    """The average over networks of one kind, such as a run's checkpoints.

    Args:
        scorer: of each.

    Returns:
        A scorer whose variables are those of all networks, from `stack`.
    """

    def score(variables, image):
        scores = jax.nn.log_softmax(jax.vmap(scorer, (0, None))(variables, image))
        return jax.nn.logsumexp(scores, axis=0) - math.log(len(scores))

    return score


def stack(networks: Sequence[Variables]) -> Variables:
    """The variables of several networks of one kind as one, for `ensemble`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def refined(scorer: Scorer, refine: Refine) -> Scorer:
    """Scores made better by what the image shows, as by a CRF.

    Args:
        scorer: of the images.
        refine: from probabilities, images and sizes to better probabilities.
    """

    def score(variables, image):
        probabilities = jax.nn.softmax(scorer(variables, image))
        size = jnp.tile(jnp.array(image.shape[1:3], jnp.int32), (len(image), 1))
        return log_probabilities(refine(probabilities, image, size))

    return score


def tiles(
    scorer: Scorer, size: tuple[int, int], overlap: float = 0.5, margin: int = 0
) -> Scorer:
    """The average over tiles that overlap, weighed by a Gaussian around their middles.

    Args:
        scorer: of each tile.
        size: height and width of a tile, in pixels; an image smaller than it is
            continued to it by its last row and column.
        overlap: the least share of a tile's side that it has in common with the next,
            in [0, 1).
        margin: pixels along a tile's edge that are left out, but where the image ends.
            With the radius of the network's receptive field the whole image's scores
            come out.

    Returns:
        A scorer; it raises ValueError for an overlap smaller than two margins.
    """

    def score(variables, image):
        height, width = image.shape[1:3]
        below, right = (max(0, n - m) for n, m in zip(size, (height, width)))
        image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        sides = image.shape[1:3]
        starts = [tile_starts(n, m, overlap, margin) for n, m in zip(sides, size)]
        corners = jnp.array(list(itertools.product(*starts)))

        def cut(array, corner):
            at = (0, *corner, 0)
            return jax.lax.dynamic_slice(array, at, (len(array), *size, array.shape[3]))

        def add(total, corner):
            scores = scorer(variables, cut(image, corner))
            patch = cut(total, corner) + weigh(scores, corner, sides, margin)
            return jax.lax.dynamic_update_slice(total, patch, (0, *corner, 0)), None

        part = (len(image), *size, image.shape[3])
        classes = jax.eval_shape(
            scorer, variables, jax.ShapeDtypeStruct(part, image.dtype)
        ).shape[3]
        total = jnp.zeros((*image.shape[:3], classes + 1))
        total, _ = jax.lax.scan(add, total, corners)
        total = total[:, :height, :width]
        return log_probabilities(total[..., :-1]) - jnp.log(total[..., -1:])

    return score


def entropy(scores: jax.Array) -> jax.Array:
    """How undecided scores [..., K] are: the entropy of their probabilities, in nats."""
    logs = jax.nn.log_softmax(scores)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def _of_whole_images(scorer: Scorer, model: nn.Module) -> Scorer:
    input_size = getattr(model, "input_size", None)
    return scorer if input_size is None else mirrored(scorer, input_size)


def _runs_without_keys(one) -> bool:
    try:
        jax.eval_shape(one, None)
    except InvalidRngError:
        return False
    return True
