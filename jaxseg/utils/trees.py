"""Pytrees by the paths of their leaves, such as "params/encoder/stage1/conv1/kernel"."""

from collections.abc import Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...], separator: str = "/") -> str:
    """The name of a key path of `jax.tree_util`: its keys, joined by the separator."""
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def flatten(tree: Any, separator: str = "/") -> dict[str, Any]:
    """A dictionary from the paths of a tree's leaves to the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {path_name(path, separator): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, for nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def replace_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The same tree with the leaves at the paths in `leaves` replaced."""
    return jax.tree.map_with_path(
        lambda path, old: leaves.get(path_name(path), old), tree
    )
