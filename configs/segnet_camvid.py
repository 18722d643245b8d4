"""SegNet on CamVid, as its authors trained it but for the start from ImageNet weights.

Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561; solver and layers
from SegNet-Tutorial (segnet_solver.prototxt, segnet_train.prototxt).

    python train.py --config configs/segnet_camvid.py --workdir runs/segnet \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16

Hardware: meant for one GPU of 12 GB or more.
Published: 60.1 mIoU on the 233 TEST images, but with 3,433 training images and a VGG16
from ImageNet; with these 367 images others measured 46 to 54. Validation scores lie far
above test scores (the drive is in the training set): never compare the two.

Learning rates of biases are doubled and only kernels decay, as in the prototxt.
Inputs are raw pixels, no mean subtracted.
"""

import segnet_basic_camvid


def get_config():
    """See above."""
    config = segnet_basic_camvid.get_config()
    config.model.name = "segnet"
    config.schedule.learning_rate = 1e-3
    config.optimizer.decay_all = False
    config.train.steps = 40_000
    config.train.eval_every_steps = 2_000
    config.train.save_every_steps = 2_000
    return config.lock()
