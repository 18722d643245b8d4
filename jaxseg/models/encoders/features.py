"""The result of an encoder, and the input of a decoder."""

from collections.abc import Sequence
from itertools import pairwise

import flax.struct
import jax


class Features(flax.struct.PyTreeNode):
    """The levels of an encoder, finest first.

    A level is everything between two changes of size. All tuples have one entry for
    each level.

    Attributes:
        maps: the last activations of each level, [B, H_i, W_i, C_i].
        pooled: the output of the max pooling with which a level begins, before the
            level's own convolutions; None where a level begins without a max pooling.
            FCN's skips start here.
        places: the positions of the maxima of that pooling in the previous level, as
            returned by `jaxseg.ops.pooling` (uint8 places of disjoint windows, or
            int32 flat indices); None where there is no max pooling.
        strides: image pixels per cell of each level.
    """

    maps: tuple[jax.Array, ...]
    pooled: tuple[jax.Array | None, ...]
    places: tuple[jax.Array | None, ...]
    strides: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def without_pooling(
        cls, maps: Sequence[jax.Array], strides: Sequence[int]
    ) -> "Features":
        """The features of an encoder without max pooling.

        Args:
            maps: the last activations of each level, [B, H_i, W_i, C_i].
            strides: image pixels per cell of each level.
        """
        nothing = (None,) * len(maps)
        return cls(tuple(maps), nothing, nothing, tuple(strides))

    @property
    def strides_without_pooling(self) -> tuple[int, ...]:
        """The strides of the levels, except the finest, that begin without max pooling."""
        levels = zip(self.strides[1:], self.places[1:])
        return tuple(stride for stride, places in levels if places is None)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level, in cells."""
        return tuple((x.shape[1], x.shape[2]) for x in self.maps)

    def with_image(self, image: jax.Array) -> "Features":
        """Adds the image itself as the finest level, of stride 1."""
        return Features(
            (image, *self.maps),
            (None, *self.pooled),
            (None, *self.places),
            (1, *self.strides),
        )

    def merged(self) -> "Features":
        """Keeps one level for each stride, as a decoder that doubles sizes requires.

        Of levels that share a stride, such as the last ones of a dilated ResNet, the
        pooling of the first and the map of the last are kept.
        """
        steps = list(pairwise(self.strides))
        first = [0, *(i for i, (a, b) in enumerate(steps, start=1) if a != b)]
        last = [*(i - 1 for i in first[1:]), len(steps)]
        return Features(
            tuple(self.maps[i] for i in last),
            tuple(self.pooled[i] for i in first),
            tuple(self.places[i] for i in first),
            tuple(self.strides[i] for i in first),
        )
