"""TFDS dataset builders that do not need TensorFlow."""

from jaxseg.data.datasets.builder import Example, SegmentationBuilder
from jaxseg.data.datasets.camvid import CamVid
from jaxseg.data.datasets.folder import Folder
from jaxseg.data.datasets.shapes import Shapes
from jaxseg.utils import registry

BUILDERS = {"camvid": CamVid, "folder": Folder, "shapes": Shapes}

registry.add_built_in("dataset", BUILDERS)

__all__ = [
    "BUILDERS",
    "CamVid",
    "Example",
    "Folder",
    "SegmentationBuilder",
    "Shapes",
]
