import pytest

from jaxseg.ops.tiling import tile_starts


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
        ((7, 8, 0.5), "do not fit into a side of 7"),
        ((16, 8, 1.0), r"in \[0, 1\)"),
        ((16, 8, 0.2, 1), "overlap of 0.25 or more"),
    ],
)
def test_tiles_that_cannot_be_placed(arguments, message):
    with pytest.raises(ValueError, match=message):
        tile_starts(*arguments)
