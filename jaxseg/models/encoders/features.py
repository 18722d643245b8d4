"""What an encoder hands to a decoder."""

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
