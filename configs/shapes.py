"""Generated shapes: a demo of two minutes on a laptop; nothing is downloaded.

    python train.py --config configs/shapes.py --workdir runs/shapes

A SegNet of three stages and width 16 on 64x64 pictures of overlapping shapes.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.kwargs = {"width": 16, "depths": (2, 2, 2)}
    config.schedule.learning_rate = 5e-3
    config.schedule.warmup_steps = 20
    config.train.batch_size = 16
    config.train.steps = 500
    config.train.eval_every_steps = 250
    return config.lock()
