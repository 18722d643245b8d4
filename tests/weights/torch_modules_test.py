"""Name mappings by module, there and back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.utils.trees import unflatten
from jaxseg.weights.mapping import IMAGENET, Mapping, convert
from jaxseg.weights.torch_modules import LEAVES, find_by_module, prefixed

NAMES = st.text("abcdefgh0123_", min_size=1, max_size=5)
LAYERS = st.sampled_from(
    [
        {"kernel": (3, 3, 2, 4), "bias": (4,)},  # convolution
        {"kernel": (2, 5)},  # dense layer
        {"scale": (3,), "bias": (3,)},  # BatchNorm, with its statistics
    ]
)


def _to_torch(leaf: np.ndarray) -> np.ndarray:
    """A tensor of our layout in PyTorch's."""
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


@given(
    modules=st.dictionaries(
        st.tuples(NAMES, NAMES).map("/".join), LAYERS, min_size=1, max_size=6
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_variables_become_a_state_dict_and_come_back(modules, seed):
    rng = np.random.default_rng(seed)
    table = {path: f"layer{i}.{path[::-1]}" for i, path in enumerate(modules)}
    table = {path: name.replace("/", ".") for path, name in table.items()}
    variables = {}
    for path, shapes in modules.items():
        for leaf, shape in shapes.items():
            variables[f"params/{path}/{leaf}"] = rng.normal(size=shape)
        if "scale" in shapes:
            for leaf in ("mean", "var"):
                variables[f"batch_stats/{path}/{leaf}"] = rng.normal(size=(3,))
    state = {}
    for path, leaf in variables.items():
        module, _, name = path.partition("/")[2].rpartition("/")
        state[f"net.{table[module]}.{LEAVES[name]}"] = _to_torch(leaf)

    find = find_by_module(prefixed("", "net.", table))
    converted = convert(state, unflatten(variables), Mapping("torch", find, IMAGENET))
    assert converted.new == converted.dropped == ()
    assert converted.variables.keys() == variables.keys()
    for path, leaf in variables.items():
        np.testing.assert_array_equal(converted.variables[path], leaf)
