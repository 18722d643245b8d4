"""The largest batch that fits, in few compilations."""

from collections.abc import Callable


def largest_batch(
    measure: Callable[[int], tuple[int, bool]],
    first: int,
    limit: int,
    *,
    fixed: int,
    compilations: int,
) -> tuple[int, int | None, int]:
    """Searches the largest batch whose program fits.

    Memory is nearly linear in the batch, `fixed + slope batch`, so each try is where a
    line meets the limit: from the largest batch that did fit to the smallest that did
    not, or while all do, from `fixed` at 0.

    But near the limit compilers begin to save memory. Where more fits than the line
    said, the next try is a quarter more, or in the middle where it is known what does
    not fit.

    Args:
        measure: maps a batch to the bytes it needs and whether it fits.
        first: batch to begin with, 1 or more.
        limit: bytes there are.
        fixed: bytes that no batch changes; a guess is enough.
        compilations: calls of `measure` at most, 1 or more.

    Returns:
        The largest batch that was found to fit, 0 if none; the smallest that was found
        not to, None if none; and the largest that should fit by the last line. The
        first two differ by 1 where the search came to its end.
    """
    tried = {0: fixed}
    low, high = 0, None
    batch = expected = first
    for _ in range(compilations):
        tried[batch], fits = measure(batch)
        next_one = fits and batch == low + 1
        low, high = (max(low, batch), high) if fits else (low, batch)
        a, b = (low, high) if high else (0, low)
        slope = (tried[b] - tried[a]) / (b - a)
        # Where memory does not grow, no line says how far it goes.
        line = a + int((limit - tried[a]) // slope) if slope > 0 else 2 * b
        expected = max(low, min(line, high - 1) if high else line)
        if high == low + 1:
            break
        batch = max(expected, low + 1)
        if high is None and low > first and (next_one or expected > low):
            batch = max(batch, low + low // 4)
        elif high and next_one:
            batch = (low + high) // 2
    return low, high, expected
