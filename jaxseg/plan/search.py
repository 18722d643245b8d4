"""The largest batch that fits, in few compilations."""

from collections.abc import Callable


def largest_batch(
    measure: Callable[[int], tuple[int, bool]],
    first: int,
    limit: int,
    *,
    fixed: int,
    compilations: int,
) -> tuple[int, int | None]:
    """Searches the largest batch whose program fits.

    Memory is nearly linear in the batch, `fixed + slope batch`, so each try is where a
    line meets the limit: through the largest batch that did fit and the smallest that
    did not, or where all did, through the two largest (`fixed` counts as that of 0).

    Args:
        measure: maps a batch to the bytes it needs and whether it fits.
        first: batch to begin with, 1 or more.
        limit: bytes there are.
        fixed: bytes that no batch changes; a guess is enough.
        compilations: calls of `measure` at most, 1 or more.

    Returns:
        The largest batch that was found to fit, 0 if none, and the smallest that was
        found not to; they differ by 1 where the search came to its end. The second is
        None where none was found.
    """
    tried = {0: fixed}
    low, high = 0, None
    batch = first
    for _ in range(compilations):
        tried[batch], fits = measure(batch)
        low, high = (max(low, batch), high) if fits else (low, batch)
        if high == low + 1:
            break
        a, b = (low, high) if high else sorted(tried)[-2:]
        slope = (tried[b] - tried[a]) / (b - a)
        # Where memory does not grow, no line says how far it goes.
        guess = a + int((limit - tried[a]) // slope) if slope > 0 else 2 * b
        batch = max(guess, low + 1)
        if high:
            batch = min(batch, high - 1)
    return low, high
