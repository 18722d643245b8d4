"""CamVid in 20 minutes on two cores: a narrow SegNet at half size.

    python train.py --config configs/camvid_quick.py --workdir runs/camvid \
        --config.data.root=/path/to/camvid

Fed at 176x240, scored at the labels' own 360x480.
"""

from configs import default


def get_config():
    """See above."""
    config = default.get_config()
    config.model.parts = {"width": 16, "depths": (2, 2, 2, 2)}

    config.data.dataset = "camvid"
    config.data.image_size = (176, 240)
    config.augment.crop_px = (176, 240)
    config.augment.scale = (0.8, 1.25)

    config.schedule.learning_rate = 4e-3
    config.schedule.warmup_steps = 20
    config.train.batch_size = 8
    config.train.steps = 800
    config.train.log_every_steps = 20
    config.train.eval_every_steps = 200
    config.train.save_every_steps = 200
    config.eval.batch_size = 8
    return config.lock()
