"""SegNet-Basic on CamVid, as its authors trained it.

Badrinarayanan, Kendall & Cipolla, https://arxiv.org/abs/1511.00561, Table 1; solver and
layers from SegNet-Tutorial (segnet_basic_solver.prototxt, segnet_basic_train.prototxt).

    python train.py --config configs/segnet_basic_camvid.py --workdir runs/segnet_basic \
        --config.data.root=/path/to/camvid

Hardware: meant for one GPU; the authors had one of 12 GB.
Published: 82.7 global accuracy, 62.0 class average, 47.7 mIoU on the 233 TEST images
(the tutorial's own weights: 82.8, 62.3, 46.3). The validation images are from a drive
that is also in the training set: their scores lie far above, never compare the two.

Where paper and prototxt differ, this is the prototxt: batch 4 (the paper has 12),
convolutions with biases, LRN across the raw channels. Its class weights cannot be had
from the labels by the paper's formula (sign symbols are 2.7 times it); they are the
preset. Channels stay RGB, which the network cannot tell when trained from nothing. The
authors chose the iteration by global accuracy on the validation set; here "best" is by
mIoU.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "segnet_basic"

    config.data.dataset = "camvid"
    config.augment.flip = 0.0
    config.normalization.mean = (0.0,)  # no mean is subtracted
    config.normalization.std = (1.0,)

    config.loss.class_weights = "segnet_camvid"
    config.schedule.name = "constant"
    config.schedule.learning_rate = 0.1
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_all = True  # its BatchNorm layers decay
    config.optimizer.lr_multipliers = (("*/conv*/bias", 2.0), ("head/bias", 2.0))

    config.train.batch_size = 4
    config.train.steps = 10_000
    config.train.eval_every_steps = 1_000
    config.train.save_every_steps = 1_000
    config.eval.batch_size = 4
    config.eval.recompute_batch_stats = True
    return config.lock()
