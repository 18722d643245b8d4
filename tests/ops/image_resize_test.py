import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxseg.data.transforms import resize_image as resize_on_host
from jaxseg.ops.image_resize import resize_image

SIZES = {
    "by no whole number": ((45, 61), (22, 30)),
    "halved": ((44, 60), (22, 30)),
    "to whole parts": ((66, 120), (22, 30)),
    "much smaller": ((143, 301), (7, 12)),
    "by a hair": ((23, 31), (22, 30)),
    "larger": ((13, 17), (22, 30)),
    "doubled": ((11, 15), (22, 30)),
    "wider and lower": ((90, 11), (22, 30)),
    "one side the same": ((22, 61), (22, 30)),
    "the same": ((22, 30), (22, 30)),
    "of one pixel": ((1, 1), (22, 30)),
}


def draw(height, width, channels):
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (2, height, width, channels), np.uint8)


@pytest.mark.parametrize("shape, size", SIZES.values(), ids=SIZES)
def test_is_opencv_s_resizing_to_the_last_bit(shape, size):
    image = draw(*shape, channels=3)
    resized = resize_image(jnp.asarray(image), size)
    assert resized.dtype == jnp.uint8
    expected = np.stack([resize_on_host(one, size) for one in image])
    np.testing.assert_array_equal(resized, expected)


def test_sizes_may_be_symbolic():
    shape = export.symbolic_shape("b, h, w, 1")
    exported = export.export(jax.jit(lambda x: resize_image(x, (22, 30))))(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    for size in ((45, 61), (13, 17)):
        image = draw(*size, channels=1)
        expected = np.stack([resize_on_host(one, (22, 30)) for one in image])
        np.testing.assert_array_equal(exported.call(image), expected)
