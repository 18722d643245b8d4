"""SegNet-Basic's encoder: four 7x7 convolutions of 64 channels.

The image is first normalized across its three channels. That layer expects raw pixels
in 0..255: on pixels in 0..1 it is almost the identity. The paper describes local
contrast normalization; this is the layer of the authors' network.

Source: SegNet-Tutorial, segnet_basic_train.prototxt.
"""

from functools import partial

from jaxseg.models.encoders.stack import ConvPoolStack
from jaxseg.ops.normalization import local_response_norm

segnet_basic = partial(
    ConvPoolStack,
    widths=(64, 64, 64, 64),
    depths=(1, 1, 1, 1),
    kernel=7,
    prepare=local_response_norm,
)
