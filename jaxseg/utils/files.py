"""Files: atomic writing, and where files are kept by default."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREPARED_DIR = "~/.cache/jaxseg/data"
"""Default folder of prepared data sets."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path that is renamed to `path` when the block ends without an error.

    After an error the temporary file is deleted, and `path` is unchanged.

    Args:
        path: of the file to write; its folder must exist.

    Yields:
        A path in the same folder that does not exist yet.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file that other processes see completely or not at all.

    Args:
        path: of the file to write; its folder must exist.
        content: text, written as UTF-8, or bytes.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
