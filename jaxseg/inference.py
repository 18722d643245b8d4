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
import numpy as np
from flax.errors import InvalidRngError

from jaxseg.models.freezing import freeze, frozen_layers
from jaxseg.ops.image_resize import resize_image
from jaxseg.ops.resize import resize_bilinear
from jaxseg.steps import Normalization, Variables, predict_logits

Scorer = Callable[[Variables, jax.Array], jax.Array]


def network(model: nn.Module, normalization: Normalization) -> Scorer:
    """One pass through a network: its logits.

    Args:
        model: the network.
        normalization: of the image.
    """
    return partial(predict_logits, model=model, normalization=normalization)


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


def views(
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
                output, _ = model.apply(
                    variables,
                    normalization(image),
                    train=True,
                    mutable=["batch_stats"],
                    rngs={} if key is None else {"dropout": key},
                )
            logits = output if isinstance(output, jax.Array) else output["logits"]
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

    return score


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


def tiles(
    scorer: Scorer, size: tuple[int, int], overlap: float = 0.5, margin: int = 0
) -> Scorer:
    """The average over tiles that overlap, weighed by a Gaussian around their middles.

    Args:
        scorer: of each tile.
        size: height and width of a tile, in pixels; no larger than the image.
        overlap: the least share of a tile's side that it has in common with the next,
            in [0, 1).
        margin: pixels along a tile's edge that are left out, but where the image ends.
            With the radius of the network's receptive field the whole image's scores
            come out.

    Returns:
        A scorer; it raises ValueError for an image smaller than a tile, or an overlap
        smaller than two margins.
    """
    weight = jnp.asarray(tile_weight(size))

    def score(variables, image):
        sides = image.shape[1:3]
        starts = [tile_starts(n, m, overlap, margin) for n, m in zip(sides, size)]
        corners = jnp.array(list(itertools.product(*starts)))

        def cut(array, corner):
            at = (0, *corner, 0)
            return jax.lax.dynamic_slice(array, at, (len(array), *size, array.shape[3]))

        def add(total, corner):
            probabilities = jax.nn.softmax(scorer(variables, cut(image, corner)))
            # The weight in one more channel: what is divided by in the end.
            ones = jnp.ones((*probabilities.shape[:3], 1))
            patch = jnp.concatenate([probabilities, ones], axis=3)
            kept = weight * tile_mask(corner, size, sides, margin)
            patch = cut(total, corner) + patch * kept[None, :, :, None]
            return jax.lax.dynamic_update_slice(total, patch, (0, *corner, 0)), None

        part = (len(image), *size, image.shape[3])
        classes = jax.eval_shape(
            scorer, variables, jax.ShapeDtypeStruct(part, image.dtype)
        ).shape[3]
        total = jnp.zeros((*image.shape[:3], classes + 1))
        total, _ = jax.lax.scan(add, total, corners)
        least = jnp.finfo(jnp.float32).tiny
        return jnp.log(jnp.maximum(total[..., :-1], least)) - jnp.log(total[..., -1:])

    return score


def tile_starts(length: int, size: int, overlap: float, margin: int = 0) -> list[int]:
    """Where tiles begin along one side: evenly spread, the last ends with the image.

    Args:
        length: of the side, in pixels.
        size: of a tile, in pixels.
        overlap: the least share of a tile in common with the next.
        margin: pixels at either end of a tile that the next has to cover.

    Raises:
        ValueError: if a tile is longer than the side, `overlap` not in [0, 1), or less
            than two margins.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: give a share of a tile, in [0, 1).")
    if size > length:
        raise ValueError(
            f"Tiles of {size} pixels do not fit into a side of {length}; take smaller "
            "ones."
        )
    if 2 * margin > size * overlap:
        raise ValueError(
            f"Tiles of {size} pixels that share {overlap:.0%} do not cover margins of "
            f"{margin} pixels; take an overlap of {2 * margin / size:.2f} or more."
        )
    step = max(1, math.floor(size * (1 - overlap)))
    count = 1 + math.ceil((length - size) / step)
    return [round(i) for i in np.linspace(0, length - size, count)]


def tile_weight(size: tuple[int, int]) -> np.ndarray:
    """Weight of a tile's pixels, float32 [h, w]: a Gaussian of an eighth of its side.

    At the middle of an edge it is still exp(-8), so that a border that only one tile
    covers keeps its place.
    """
    sides = [np.exp(-32 * ((np.arange(n) + 0.5) / n - 0.5) ** 2) for n in size]
    return np.outer(*sides).astype(np.float32)


def tile_mask(
    corner: jax.Array, size: tuple[int, int], sides: tuple[int, int], margin: int
) -> jax.Array:
    """The pixels of a tile that count, boolean [h, w].

    Args:
        corner: row and column where the tile begins.
        size: of the tile.
        sides: of the image.
        margin: pixels along an edge that do not count, but where the image ends.
    """
    counts = []
    for start, length, side in zip(corner, size, sides):
        place = jnp.arange(length)
        first = (place >= margin) | (start == 0)
        last = (place < length - margin) | (start + length == side)
        counts.append(first & last)
    return counts[0][:, None] & counts[1][None, :]


def entropy(scores: jax.Array) -> jax.Array:
    """How undecided scores [..., K] are: the entropy of their probabilities, in nats."""
    logs = jax.nn.log_softmax(scores)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def _runs_without_keys(one) -> bool:
    try:
        jax.eval_shape(one, None)
    except InvalidRngError:
        return False
    return True
