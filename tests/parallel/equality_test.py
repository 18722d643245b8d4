"""Four devices give what one gives, however the work is shared among them."""

import functools

import pytest

from benchmarks import equality
from configs import default
from jaxseg.losses import cross_entropy
from jaxseg.parallel.mesh import create_parallel
from jaxseg.training.setup import TrainingSetup
from jaxseg.weights.mapping import IMAGENET

SIZE = 68, 40
"""68 rows divide by 4 devices at the first level, and by none at the others."""


@functools.cache
def _one_device(name):
    return equality.train(name, SIZE, create_parallel(data=1))


@pytest.mark.parametrize(
    ("name", "layout", "remat"),
    [
        *((name, "jit 2x2 fsdp", False) for name in equality.MODELS),
        *((name, "jit 1x4", True) for name in equality.MODELS),
        *((name, "shard_map 4x1", False) for name in ("fcn8s", "deeplab_v3plus")),
    ],
)
def test_four_devices_equal_one(name, layout, remat):
    """All of the backends, and in float32: tests/training/step_test.py."""
    parallel = create_parallel(**equality.LAYOUTS[layout])
    got = equality.train(name, SIZE, parallel, remat)
    for what, error in equality.differences(_one_device(name), got).items():
        # The loss is of float32 logits.
        assert error < (1e-6 if what == "loss" else 1e-12), (what, error)


def test_a_device_needs_its_share_of_the_memory_of_an_image():
    config = default.get_config()
    config.model.name = "unet"
    config.model.kwargs = {"width": 2, "levels": 3}
    config.train.batch_size = 1

    def bytes_of(devices):
        program = TrainingSetup(
            config,
            create_parallel(data=1, space=devices),
            num_classes=3,
            image_shape=(256, 256, 3),
            normalization=IMAGENET,
            loss_fn=cross_entropy,
        )
        compiled = program.train_step.lower(program.state, program.batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 1 / 4 < bytes_of(4) / bytes_of(1) < 1 / 3
