"""Weighted sums of losses."""

from collections.abc import Mapping

import jax

from jaxseg.losses.reduction import LossFn, apply_loss


def combine(terms: Mapping[str, tuple[float, LossFn]]) -> LossFn:
    """A loss with several terms, each of which is divided by its own denominator.

    Args:
        terms: weight and loss of each term, by name.

    Returns:
        A function like its terms, which returns two dicts by the names of the terms: the
        sums, times their weights, and the denominators. The combined loss is the sum of
        the quotients; see `jaxseg.training.step`.
    """

    def loss(
        logits: jax.Array, label: jax.Array, *, axis_name: str | None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        sums, denominators = {}, {}
        for name, (weight, loss_fn) in terms.items():
            total, denominators[name] = apply_loss(loss_fn, logits, label, axis_name)
            sums[name] = weight * total
        return sums, denominators

    return loss
