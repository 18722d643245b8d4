"""Error messages about names that do not exist."""

import difflib
from collections.abc import Iterable


def suggest_name(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    Args:
        name: the unknown name.
        known: all names that exist.

    Returns:
        "; did you mean ...? Known: ...", ". Known: ..." or "; none is known.".
    """
    known = tuple(known)
    if not known:
        return "; none is known."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known)}."
