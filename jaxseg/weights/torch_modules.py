"""Torch's modules and ours: how one's tensors are the other's variables."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from jaxseg.weights.mapping import Source, conv, dense

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our names of a module's variables, and torch's."""

COUNTERS = ("*.num_batches_tracked",)
"""Of BatchNorm; they matter where it has no momentum, and ours has one."""

Make = Callable[..., np.ndarray]


def find_by_module(
    modules: Mapping[str, str],
    special: Mapping[str, Source] = MappingProxyType({}),
) -> Callable[[str, tuple[int, ...]], Source | None]:
    """The `find` of a `Mapping` where each of our modules is one of theirs.

    Args:
        modules: paths of our modules, "encoder/stem/conv", and what torch calls them.
        special: sources of single variables that are not the module's tensor in the
            usual layout, by their own paths without the collection.

    Returns:
        A function from a variable's path and shape to its source; None for a variable
        of a module that is not listed.
    """

    def find(path: str, shape: tuple[int, ...]) -> Source | None:
        _, _, path = path.partition("/")
        if path in special:
            return special[path]
        module, _, leaf = path.rpartition("/")
        if module not in modules:
            return None
        name = f"{modules[module]}.{LEAVES[leaf]}"
        if leaf != "kernel":
            return Source((name,))
        return Source((name,), conv if len(shape) == 4 else dense)

    return find


def prefixed(ours: str, theirs: str, modules: Mapping[str, str]) -> dict[str, str]:
    """A table of modules inside larger ones.

    Args:
        ours: put before our paths, such as "encoder/".
        theirs: put before torch's names, such as "backbone.".
        modules: the table.

    Returns:
        The table of the larger module's.
    """
    return {ours + path: theirs + name for path, name in modules.items()}
