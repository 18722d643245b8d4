"""State dicts of segmentation_models.pytorch (SMP): its Unet on ResNets.

SMP's Unet is our `encoder_decoder` with the parts below, its default widths and a
ResNet; both take other `widths`. SMP refuses sizes that are not multiples of 32, for
the others ours takes the nearest cell where torch's "nearest" has another rule.

Its DeepLabV3Plus has no place here: the separable convolutions of its ASPP and decoder
have no BatchNorm and ReLU between the depthwise and the 1x1 step, where ours, as
TensorFlow's, have them; one more of them stands behind the ASPP, the decoder has one
convolution rather than two, and the rates at stride 16 are 12, 24 and 36 rather than
6, 12 and 18.
"""

from collections.abc import Mapping as MappingType
from typing import Any

from jaxseg.weights.mapping import IMAGENET, Mapping
from jaxseg.weights.torch_modules import COUNTERS, find_by_module, prefixed
from jaxseg.weights.torchvision import RESNETS

UNET = dict(
    skip="concat",
    upsampler="nearest",
    block="bn",
    widths=(256, 128, 64, 32, 16),
    depth=2,
    image_level=True,
    head_kernel=3,
    block_kwargs={"use_bias": False},
)
"""The parts with which `encoder_decoder` is `Unet` with its default arguments."""

_BLOCK = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv2.0", "bn2": "conv2.1"}


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """What SMP's files can give to a model.

    Args:
        model: the arguments of `create_model`, with `name` and `encoder`.

    Returns:
        One mapping for `encoder_decoder` on a ResNet; none for others.
    """
    encoder = model["encoder"]
    if model["name"] != "encoder_decoder" or encoder not in RESNETS:
        return ()
    modules = prefixed("encoder/", "encoder.", RESNETS[encoder])
    for i in range(len(UNET["widths"])):
        modules |= prefixed(f"decoder/blocks_{i}/", f"decoder.blocks.{i}.", _BLOCK)
    modules["head"] = "segmentation_head.0"
    return (
        Mapping(
            name=f"SMP Unet on {encoder}",
            find=find_by_module(modules),
            normalization=IMAGENET,
            kwargs=UNET,
            ignored=COUNTERS,
            classes="segmentation_head.0.bias",
        ),
    )
