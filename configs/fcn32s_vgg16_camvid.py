"""FCN-32s on VGG16 on CamVid: the first of three stages, then fcn16s and fcn8s.

Long, Shelhamer & Darrell, https://arxiv.org/abs/1411.4038, sec. 4.3: SGD with momentum
0.9, learning rate 1e-4, weight decay 5e-4, twice the rate for biases, batches of 20.
The paper starts from a VGG16 trained on ImageNet, without which it learns little.

    python train.py --config configs/fcn32s_vgg16_camvid.py --workdir runs/fcn32s \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16

Hardware: meant for one GPU of 24 GB or more; 134 million parameters. The stages have
the same names for the parameters they share.
"""

from configs import default


def get_config():
    """See above."""
    config = default.get_config()
    config.model.name = "fcn32s"
    config.model.parts = {"encoder": "vgg16"}

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
