"""FCN-32s on VGG16 on CamVid: the first of three stages, then fcn16s and fcn8s.

Long, Shelhamer & Darrell, https://arxiv.org/abs/1411.4038, sec. 4.3: SGD with momentum
0.9, learning rate 1e-4, weight decay 5e-4, twice the rate for biases, batches of 20,
from a VGG16 trained on ImageNet:

    python train.py --config configs/fcn32s_vgg16_camvid.py --workdir runs/fcn32s \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \
        --config.init_from=vgg16-397923af.pth --config.init_head=new

That file of torchvision's fills the five stages of convolutions and, made convolutions,
fc6 and fc7; the scores start from zero. Some notes on FCN have fc6 and fc7 start from
zero too: that network is dead. A zero fc6 gives zeros, through which a zero fc7 gets no
gradient and passes none, and only the bias of the scores would ever move. Starting the
scores alone from zero is sound: they come alive at the first step and the rest at the
second. All enlargements interpolate bilinearly at the start; the last stays so.

Hardware: meant for one GPU of 24 GB or more; 134 million parameters. The stages have
the same names for the parameters they share.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "fcn32s"
    config.model.kwargs = {"encoder": "vgg16"}

    config.data.dataset = "camvid"

    config.schedule.name = "constant"
    config.schedule.learning_rate = 1e-4
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-4
    config.optimizer.lr_multipliers = (("*/bias", 2.0),)

    config.train.batch_size = 20
    config.train.steps = 4_000
    config.train.eval_every_steps = 500
    config.train.save_every_steps = 500
    config.eval.batch_size = 4
    return config.lock()
