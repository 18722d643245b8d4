"""State dicts of wkentaro/pytorch-fcn: FCN32s, FCN16s, FCN8s and FCN8sAtOnce.

They are the authors' released nets layer for layer: 100 zeros around images in BGR,
and crops. Where our enlargements are fixed they have no weights; the file's are read
all the same, to see that they are what ours are, bilinear in each class for itself.
"""

from collections.abc import Mapping as MappingType
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxseg.models.encoders.vgg import DEPTHS
from jaxseg.models.upsamplers import bilinear_init
from jaxseg.weights.mapping import CAFFE, Mapping, Source, WeightsError, conv, conv_bgr
from jaxseg.weights.torch_modules import find_by_module

MODULES = {
    **{
        f"encoder/stage{stage}/conv{i}": f"conv{stage}_{i}"
        for stage, depth in enumerate(DEPTHS, start=1)
        for i in range(1, depth + 1)
    },
    "neck/block/fc6": "fc6",
    "neck/block/fc7": "fc7",
    "neck/score": "score_fr",
    "decoder/skips_0/project": "score_pool4",
    "decoder/skips_1/project": "score_pool3",
}

ENLARGEMENTS = {
    "fcn32s": ("upscore",),
    "fcn16s": ("upscore2", "upscore16"),
    "fcn8s": ("upscore2", "upscore_pool4", "upscore8"),
    "fcn8s_atonce": ("upscore2", "upscore_pool4", "upscore8"),
}
"""Transposed convolutions, coarse to fine; the last is fixed in ours in any case."""


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """What pytorch-fcn's files can give to a model.

    Args:
        model: the arguments of `create_model`, with `name` and `encoder`.

    Returns:
        One mapping for an FCN on VGG16; none for others.
    """
    name = model["name"]
    if name not in ENLARGEMENTS or model["encoder"] != "vgg16":
        return ()
    *between, last = (f"{layer}.weight" for layer in ENLARGEMENTS[name])
    special = {"encoder/stage1/conv1/kernel": Source(("conv1_1.weight",), conv_bgr)}
    if model.get("learned"):
        fixed = [last]
        for i, weight in enumerate(between):
            path = f"decoder/upsamplers_{i}/conv/kernel"
            special[path] = Source((weight,), _transposed)
    else:
        fixed = [*between, last]
    # Checked with the scores that they enlarge.
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


def _transposed(kernel: np.ndarray) -> np.ndarray:
    """[Cin, Cout, kh, kw] of torch's transposed convolution to [kh, kw, Cin, Cout]."""
    return kernel.transpose(2, 3, 0, 1)


def _checked(
    scores: np.ndarray, *enlargements: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    """The scores' kernel, if the enlargements behind them are the fixed ones."""
    for name, kernel in zip(names, map(_transposed, enlargements)):
        stride = len(kernel) // 2
        bilinear = bilinear_init(stride)(jax.random.key(0), kernel.shape)
        if not np.allclose(kernel, bilinear, atol=1e-5):
            cure = (
                "of the last enlargement only the fixed one is there"
                if name == names[-1]
                else "build the model with learned=True"
            )
            raise WeightsError(
                f"{name} was trained away from bilinear interpolation; {cure}."
            )
    return conv(scores)
