"""Checkpoints of a run and the workdir that describes it."""

from jaxseg.checkpoints.manager import (
    CheckpointManager,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from jaxseg.checkpoints.run import load, save

__all__ = [
    "CheckpointManager",
    "CorruptCheckpointError",
    "IncompatibleCheckpointError",
    "load",
    "save",
]
