"""What an encoder hands to a decoder."""

from itertools import pairwise

import flax.struct
import jax


class Features(flax.struct.PyTreeNode):
    """The levels of an encoder, finest first.

    A level is everything between two reductions of the image. All tuples have one
    entry a level, so that `zip` walks them together.

    Attributes:
        maps: the last activations of each level, [B, H_i, W_i, C_i].
        pooled: what the max pooling that opens a level gave, before the level's own
            convolutions; None where a level opens without a max pooling. FCN takes
            its skips here.
        places: where the maxima of that pooling stood in the level above, as
            `jaxseg.ops.pooling` gives them (uint8 places of disjoint windows, or
            int32 flat indices); None where there was none.
        strides: image pixels from one cell of a level to the next.
    """

    maps: tuple[jax.Array, ...]
    pooled: tuple[jax.Array | None, ...]
    places: tuple[jax.Array | None, ...]
    strides: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level, in cells."""
        return tuple(x.shape[1:3] for x in self.maps)

    def with_image(self, image: jax.Array) -> "Features":
        """Puts the image itself in front, as a level of stride 1."""
        return Features(
            (image, *self.maps),
            (None, *self.pooled),
            (None, *self.places),
            (1, *self.strides),
        )

    def merged(self) -> "Features":
        """Keeps one level a stride, as a decoder that doubles sizes wants it.

        Of levels that share a stride, as the last ones of a dilated ResNet do, the
        first one's opening and the last one's map remain.
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
