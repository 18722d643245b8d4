import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxseg.ops.tiling import tile_mask, tile_starts


@pytest.mark.parametrize(
    ("length", "size", "overlap", "starts"),
    [
        (8, 8, 0.5, [0]),
        (16, 8, 0.5, [0, 4, 8]),
        (17, 8, 0.0, [0, 8, 9]),
        (256, 128, 0.5, [0, 64, 128]),
        (250, 130, 0.5, [0, 64, 120]),
    ],
)
def test_tiles_are_a_step_of_the_stride_apart(length, size, overlap, starts):
    assert tile_starts(length, size, overlap) == starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 8, 0.5), "do not fit into 7"),
        ((16, 8, 1.0), r"in \[0, 1\)"),
        ((16, 8, 0.2, 1), "overlap of 0.25 or more"),
    ],
)
def test_tiles_that_cannot_be_placed(arguments, message):
    with pytest.raises(ValueError, match=message):
        tile_starts(*arguments)


@given(
    size=st.integers(1, 200),
    extra=st.integers(0, 400),
    overlap=st.floats(0, 0.95),
    margin=st.integers(0, 40),
)
@settings(max_examples=100, deadline=None)
def test_tiles_cover_a_side_without_their_margins(size, extra, overlap, margin):
    assume(2 * margin <= size * overlap)
    length = size + extra
    starts = tile_starts(length, size, overlap, margin)
    assert starts[0] == 0 and starts[-1] == length - size
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= max(1, size * (1 - overlap))).all()
    used = np.zeros(length, bool)
    for start in starts:
        first = 0 if start == 0 else margin
        last = size if start == length - size else size - margin
        used[start + first : start + last] = True
    assert used.all()


@given(starts=st.tuples(st.integers(0, 4), st.integers(0, 4)), margin=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_a_mask_leaves_out_margins_inside_the_image(starts, margin):
    mask = np.asarray(tile_mask(starts, (6, 6), (10, 10), margin))
    image = np.zeros((10, 10), bool)
    image[starts[0] :, starts[1] :][:6, :6] = mask
    for axis, start in enumerate(starts):
        lines = image.any(axis=1 - axis)
        first = 0 if start == 0 else start + margin
        last = 10 if start == 4 else start + 6 - margin
        assert lines.nonzero()[0].tolist() == list(range(first, last))
