"""U-Net on CamVid, same-sized and with BatchNorm, trained from nothing.

Ronneberger, Fischer & Brox, https://arxiv.org/abs/1505.04597. The paper's recipe (one
large tile a batch, momentum 0.99, weights along the borders of cells) is for a few
images of cells; this one is AdamW with a cosine.

    python train.py --config configs/unet_camvid.py --workdir runs/unet \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16

What do its skips bring? `--config.model.kwargs.skip=none`.
Hardware: meant for one GPU of 24 GB or more.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "unet"
    config.model.kwargs = {"norm": True, "skip": "concat"}

    config.data.dataset = "camvid"
    config.augment.scale = (0.75, 1.5)
    config.augment.crop_px = (352, 480)

    config.loss.class_weights = "median_frequency"
    config.schedule.warmup_steps = 100
    config.train.batch_size = 8
    config.train.steps = 6_000
    config.train.eval_every_steps = 500
    config.train.save_every_steps = 500
    config.eval.batch_size = 4
    return config.lock()
