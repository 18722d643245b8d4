"""U-Net's contracting path: two 3x3 convolutions per level, 64 to 1024 channels.

The two deepest levels end with dropout, which affects the skip of the first of them
too, as in the authors' release. The paper's convolutions are unpadded
(`padding="VALID"`): 572 pixels become 568, 280, 136, 64 and 28 cells at the five levels.

Source: Ronneberger, Fischer & Brox, https://arxiv.org/abs/1505.04597.
"""

from functools import partial

from jaxseg.models.encoders.stack import ConvPoolStack

unet = partial(
    ConvPoolStack,
    widths=(64, 128, 256, 512, 1024),
    depths=(2, 2, 2, 2, 2),
    norm=None,
    dropouts=(0.0, 0.0, 0.0, 0.5, 0.5),
    drop_maps=True,
    pool_last=False,
)
