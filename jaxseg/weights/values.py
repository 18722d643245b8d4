"""Checks of the values of weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.weights.mapping import WeightsError, summary


def check_values(leaves: Mapping[str, Any], source: object) -> None:
    """Checks that weights are finite, and variances of BatchNorm not negative.

    Args:
        leaves: arrays by path, such as "batch_stats/encoder/bn1/var".
        source: their file or folder, for the message.

    Raises:
        WeightsError: if not; names all such arrays.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    infinite = [name for name, x in arrays.items() if not np.all(np.isfinite(x))]
    negative = [
        name
        for name, x in arrays.items()
        if name.startswith("batch_stats/") and name.endswith("/var") and np.any(x < 0)
    ]
    problems = {"NaN or infinite": infinite, "negative variances": negative}
    found = [f"{what}: {summary(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(
            f"{source} has invalid values ({'; '.join(found)}); use weights from before "
            "the training diverged, or get the file again."
        )
