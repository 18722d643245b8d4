"""Drawn shapes: the whole library in two minutes on a laptop, nothing downloaded.

    python train.py --config configs/shapes.py --workdir runs/shapes

A SegNet of width 8 on 64x64 pictures of overlapping shapes.
"""

from configs import default


def get_config():
    """See above."""
    config = default.get_config()
    config.model.parts = {"width": 8}
    config.train.steps = 300
    return config.lock()
