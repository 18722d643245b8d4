"""State dicts of wkentaro/pytorch-fcn: FCN32s, FCN16s, FCN8s and FCN8sAtOnce.

They have the layers of the authors' released networks: 100 zeros around images in BGR,
and crops. Where our upsampling is fixed, it has no weights; the weights in the file are
read nevertheless, to check that they are the same bilinear interpolation of each class.
"""

from collections.abc import Mapping as MappingType
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxseg.models.upsamplers import bilinear_init
from jaxseg.weights.layer_map import FCN_UPSCORES, VGG16
from jaxseg.weights.mapping import (
    CAFFE,
    Mapping,
    Source,
    WeightsError,
    conv,
    conv_bgr,
    conv_transpose,
)
from jaxseg.weights.torch_modules import find_by_module, prefixed

MODULES = {
    **prefixed("encoder/", "", VGG16),
    "neck/block/fc6": "fc6",
    "neck/block/fc7": "fc7",
    "neck/score": "score_fr",
    "decoder/skips_0/project": "score_pool4",
    "decoder/skips_1/project": "score_pool3",
}


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """The mappings from pytorch-fcn's files to a model.

    Args:
        model: keyword arguments of `create_model`, with `name` and `encoder`.

    Returns:
        One mapping for an FCN on VGG16; none for other models.
    """
    name = model["name"]
    if name not in FCN_UPSCORES or model["encoder"] != "vgg16":
        return ()
    *between, last = (f"{layer}.weight" for layer in FCN_UPSCORES[name])
    special = {"encoder/stage1/conv1/kernel": Source(("conv1_1.weight",), conv_bgr)}
    if model.get("learned"):
        fixed = [last]
        for i, weight in enumerate(between):
            path = f"decoder/upsamplers_{i}/conv/kernel"
            special[path] = Source((weight,), conv_transpose)
    else:
        fixed = [*between, last]
    # Checked together with the scores that they upsample.
    special["neck/score/kernel"] = Source(
        ("score_fr.weight", *fixed), partial(_checked, names=tuple(fixed))
    )
    return (
        Mapping(
            name=f"pytorch-fcn {name}",
            find=find_by_module(MODULES, special),
            normalization=CAFFE,
            kwargs={"geometry": "released"},
            classes="score_fr.bias",
        ),
    )


def _checked(
    scores: np.ndarray, *upscores: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    """The kernel of the scores, if the upsampling after them equals our fixed one."""
    for name, kernel in zip(names, map(conv_transpose, upscores)):
        stride = len(kernel) // 2
        bilinear = bilinear_init(stride)(jax.random.key(0), kernel.shape)
        if not np.allclose(kernel, bilinear, atol=1e-5):
            cure = (
                "in this model the last upsampling is fixed"
                if name == names[-1]
                else "build the model with learned=True"
            )
            raise WeightsError(f"{name} is not a bilinear interpolation; {cure}.")
    return conv(scores)
