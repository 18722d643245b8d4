"""DeconvNet on CamVid, with its authors' solver.

Noh, Hong & Han, https://arxiv.org/abs/1505.04366: SGD with momentum 0.9, learning rate
0.01 that falls to a tenth every 10,000 updates, weight decay 5e-4, batches of 64 made
of 8 times 8, crops of 224x224. The authors start from VGG16 and train on crops around
objects first, which CamVid does not have.

    python train.py --config configs/deconvnet_camvid.py --workdir runs/deconvnet \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16

Hardware: meant for one GPU of 24 GB or more; 252 million parameters.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "deconvnet"

    config.data.dataset = "camvid"
    config.augment.crop_px = (224, 224)

    config.schedule.name = "step"
    config.schedule.learning_rate = 0.01
    config.schedule.every = 10_000
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-4
    config.optimizer.accumulate_steps = 8

    config.train.batch_size = 8
    config.train.steps = 160_000  # 20,000 updates
    config.train.log_every_steps = 200
    config.train.eval_every_steps = 8_000
    config.train.save_every_steps = 8_000
    config.eval.batch_size = 4
    return config.lock()
