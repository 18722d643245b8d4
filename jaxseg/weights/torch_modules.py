"""Names and layouts of the tensors of PyTorch's modules, for name mappings."""

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
"""Our names of a module's variables, and PyTorch's."""

COUNTERS = ("*.num_batches_tracked",)
"""Counters of BatchNorm, which are only used without momentum; ours has one."""

Make = Callable[..., np.ndarray]


def find_by_module(
    modules: Mapping[str, str],
    special: Mapping[str, Source] = MappingProxyType({}),
) -> Callable[[str, tuple[int, ...]], Source | None]:
    """The `find` function of a `Mapping`, from a table of modules.

    Args:
        modules: names of PyTorch's modules by the paths of ours, such as
            "encoder/stem/conv".
        special: sources of variables with another layout, by their paths without the
            collection.

    Returns:
        A function from a variable's path and shape to its source; None for a variable
        of a module that is not in the table.
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
    """Prepends prefixes to the names of a table of modules.

    Args:
        ours: prefix of our paths, such as "encoder/".
        theirs: prefix of PyTorch's names, such as "backbone.".
        modules: the table.

    Returns:
        The table with prefixes.
    """
    return {ours + path: theirs + name for path, name in modules.items()}
