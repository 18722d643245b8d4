"""What a run leaves on disk: its states, and its description."""

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
