"""Reading JSON that may come from a stranger, or be damaged."""

import collections
import json
import os
from typing import Any

from jaxseg.utils.files import read_file


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: as `read_file` and `parse_json`; names the file.
        OSError: if it cannot be read.
    """
    return parse_json(read_file(path), str(path))


def parse_json(content: str | bytes, source: str) -> Any:
    """Parses JSON. NaN and infinities are accepted, as Python writes them.

    Args:
        content: text, or its UTF-8 bytes.
        source: its origin, for error messages.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, a key is given twice, or it is nested
            too deeply.
    """
    try:
        # Windows tools begin UTF-8 with a byte-order mark.
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"{source} is damaged: it is nested too deeply.") from error
    except ValueError as error:  # also of bytes that are not text, and of huge integers
        raise ValueError(f"{source} is damaged: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python would use the last of several values with the same key."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        (twice, _), *_ = counts.most_common(1)
        raise ValueError(f"the key {twice!r:.80} is given twice")
    return entries
