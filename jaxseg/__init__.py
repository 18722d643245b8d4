"""Semantic segmentation in JAX.

Letters in shapes: B batch, H and W pixels, C channels, K classes.

Everything is loaded when it is first used, so that `import jaxseg` itself is fast.
"""

import importlib.metadata
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxseg.checkpoints.run import load, save
    from jaxseg.models import (
        create_model,
        list_blocks,
        list_encoders,
        list_models,
        list_skips,
        list_upsamplers,
    )
    from jaxseg.utils.registry import register

    __version__: str

__all__ = [
    "create_model",
    "list_blocks",
    "list_encoders",
    "list_models",
    "list_skips",
    "list_upsamplers",
    "load",
    "register",
    "save",
]

_MODULES = dict.fromkeys(__all__, "jaxseg.models") | {
    "load": "jaxseg.checkpoints.run",
    "save": "jaxseg.checkpoints.run",
    "register": "jaxseg.utils.registry",
}
"""The module that each public name is loaded from."""

_PACKAGES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"jaxseg.{name}")
    elif name == "__version__":
        value = importlib.metadata.version("jaxseg")
    else:
        raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")
    globals()[name] = value  # so that the next use is direct
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES, "__version__"})
