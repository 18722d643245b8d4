"""State dicts of segmentation_models.pytorch (SMP): its Unet on ResNets.

SMP's Unet is our `encoder_decoder` with the components below, its default widths and a
ResNet; both accept other `widths`. SMP only accepts sizes that are multiples of 32; for
other sizes, ours differs from PyTorch's "nearest" in the choice of the nearest cell.

SMP's DeepLabV3Plus is not supported, because its architecture differs from ours: the
separable convolutions of its ASPP and decoder have no BatchNorm and ReLU between the
depthwise and the 1x1 convolution, in contrast to TensorFlow and ours; there is another
one after the ASPP; the decoder has one convolution instead of two; and the rates at
stride 16 are 12, 24 and 36 instead of 6, 12 and 18.
"""

from collections.abc import Mapping as MappingType
from typing import Any

from jaxseg.weights.mapping import IMAGENET, Mapping
from jaxseg.weights.torch_modules import COUNTERS, find_by_module, prefixed
from jaxseg.weights.torchvision import RESNETS

WIDTHS = (256, 128, 64, 32, 16)

UNET: dict[str, Any] = dict(
    skip="concat",
    upsampler="nearest",
    block="bn",
    widths=WIDTHS,
    depth=2,
    image_level=True,
    head_kernel=3,
    block_kwargs={"use_bias": False},
)
"""Arguments with which `encoder_decoder` equals `Unet` with its default arguments."""

_BLOCK = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv2.0", "bn2": "conv2.1"}


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """The mappings from SMP's files to a model.

    Args:
        model: keyword arguments of `create_model`, with `name` and `encoder`.

    Returns:
        One mapping for `encoder_decoder` on a ResNet; none for other models.
    """
    encoder = model["encoder"]
    if model["name"] != "encoder_decoder" or encoder not in RESNETS:
        return ()
    modules = prefixed("encoder/", "encoder.", RESNETS[encoder])
    for i in range(len(WIDTHS)):
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
