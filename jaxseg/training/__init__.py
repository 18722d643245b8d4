"""Training: what a config means, the step, and the loop around it."""

from typing import TYPE_CHECKING, Any

from jaxseg.training.default_config import default_config

if TYPE_CHECKING:
    from jaxseg.training.trainer import run

__all__ = ["default_config", "run"]


def __getattr__(name: str) -> Any:
    """Loads the trainer when it is first used: a config needs only the defaults."""
    if name == "run":
        from jaxseg.training.trainer import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
