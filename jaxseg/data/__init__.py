"""Data sets: prepared once, read in any order, augmented on the host as uint8."""

from jaxseg.data import balance, datasets, transforms
from jaxseg.data.balance import pixel_counts
from jaxseg.data.images import read_image
from jaxseg.data.pipeline import EvalBatches, TrainBatches, eval_batches, train_batches
from jaxseg.data.records import DatasetInfo
from jaxseg.data.source import Source, create_source

__all__ = [
    "DatasetInfo",
    "EvalBatches",
    "Source",
    "TrainBatches",
    "balance",
    "create_source",
    "datasets",
    "eval_batches",
    "pixel_counts",
    "read_image",
    "train_batches",
    "transforms",
]
