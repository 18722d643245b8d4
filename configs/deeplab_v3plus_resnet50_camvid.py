"""DeepLab v3+ on ResNet-50 on CamVid, with the paper's schedule.

Chen et al., https://arxiv.org/abs/1802.02611 and https://arxiv.org/abs/1706.05587,
sec. 4: poly schedule of power 0.9 from 0.007, momentum 0.9, batches of 16, scales from
0.5 to 2, output stride 16, weight decay 1e-4 on ResNets. Crops have 16 k + 1 pixels, as
the paper's 513, here as many as CamVid has.

    python train.py --config configs/deeplab_v3plus_resnet50_camvid.py \
        --workdir runs/deeplab_v3plus --config.data.root=/path/to/camvid \
        --config.model.dtype=bfloat16

The paper starts from a ResNet trained on ImageNet, and with 367 images it matters.
Hardware: meant for one GPU of 24 GB or more.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "deeplab_v3plus"
    config.model.kwargs = {"encoder": "resnet50", "output_stride": 16}

    config.data.dataset = "camvid"
    config.augment.scale = (0.5, 2.0)
    config.augment.crop_px = (353, 465)

    config.schedule.name = "poly"
    config.schedule.power = 0.9
    config.schedule.learning_rate = 0.007
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 1e-4

    config.train.batch_size = 16
    config.train.steps = 4_000
    config.train.eval_every_steps = 500
    config.train.save_every_steps = 500
    config.eval.batch_size = 4
    return config.lock()
