"""Search for the largest batch that fits, in few compilations."""

from collections.abc import Callable


def largest_batch(
    measure: Callable[[int], tuple[int, bool]],
    first: int,
    limit: int,
    *,
    fixed: int,
    compilations: int,
) -> tuple[int, int | None, int]:
    """Searches for the largest batch whose program fits.

    Memory is nearly linear in the batch, `fixed + slope * batch`, so each step tries
    the batch at which a line meets the limit. The line passes through the largest batch
    that fits and the smallest that does not; while all batches fit, it passes through
    `fixed` at 0.

    Near the limit, however, compilers start to save memory. If more fits than the line
    predicted, the next batch is a quarter larger, or halfway to the smallest batch that
    does not fit.

    Args:
        measure: function from a batch to the bytes it needs, and whether it fits.
        first: first batch to try, at least 1.
        limit: available bytes.
        fixed: bytes that do not depend on the batch; an estimate is enough.
        compilations: largest number of calls of `measure`, at least 1.

    Returns:
        The largest batch found to fit, or 0; the smallest batch found not to fit, or
        None; and the largest batch predicted to fit. The first two differ by 1 if the
        search was completed.
    """
    tried = {0: fixed}
    low, high = 0, None
    batch = expected = first
    for _ in range(compilations):
        tried[batch], fits = measure(batch)
        by_one = fits and batch == low + 1
        low, high = (max(low, batch), high) if fits else (low, batch)
        a, b = (low, high) if high else (0, low)
        slope = (tried[b] - tried[a]) / (b - a)
        # If memory does not grow, a line predicts nothing.
        line = a + int((limit - tried[a]) // slope) if slope > 0 else 2 * b
        expected = max(low, min(line, high - 1) if high else line)
        if high == low + 1:
            break
        batch = max(expected, low + 1)
        if high is None and low > first and (by_one or expected > low):
            batch = max(batch, low + low // 4)
        elif high and by_one:
            batch = (low + high) // 2
    return low, high, expected
