"""Trees and the paths of their leaves."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.utils.trees import flatten, replace_leaves, unflatten

NAMES = st.text("abcdefgh0123_", min_size=1, max_size=5)
TREES = st.recursive(
    st.integers(0, 5).map(np.zeros),
    lambda trees: st.dictionaries(NAMES, trees, min_size=1, max_size=3),
    max_leaves=8,
)


@given(tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_paths_of_a_tree_are_its_structure(tree):
    leaves = flatten(tree)
    back = unflatten(leaves)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for path, leaf in leaves.items():
        node = tree
        for key in path.split("/"):
            node = node[key]
        assert node is leaf is flatten(back)[path]


def test_leaves_are_replaced_by_their_paths():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert replace_leaves(tree, {"a/c": 5}) == {"a": {"b": 1, "c": 5}, "d": 3}
