"""Files: reading of regular files only, atomic writing, locks, and default folders.

Files may come from strangers, and so may the folders that jaxseg writes to. Nothing here
follows a symbolic link to write, waits for a pipe, or reads without a limit.
"""

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREPARED_DIR = "~/.cache/jaxseg/data"
"""Default folder of prepared data sets."""

TEXT_LIMIT = 64 * 2**20
"""Largest JSON or text file that is read, in bytes."""

_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class FileLockedError(OSError):
    """Another process holds the lock."""


def expand_home(path: str | os.PathLike) -> Path:
    """The path with a leading `~` replaced by the home folder.

    Raises:
        ValueError: if there is no home folder, as for a user without an account.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: this user has no home folder; set HOME, or use a path without ~"
        ) from error


def read_file(path: str | os.PathLike, limit: int = TEXT_LIMIT) -> bytes:
    """Reads a regular file completely.

    Args:
        path: of the file; may be a symbolic link to a file.
        limit: largest size in bytes.

    Raises:
        ValueError: if it is a pipe, a device or another special file, or larger than
            the limit; names the file.
        OSError: if it cannot be read.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: not a regular file; replace or remove it")
        # Not `limit + 1` bytes, for which memory would be allocated first.
        content = b"" if status.st_size > limit else file.read(status.st_size + 1)
        if len(content) > status.st_size:  # it has grown
            content += file.read(limit + 1 - len(content))
        if max(status.st_size, len(content)) > limit:
            raise ValueError(
                f"{path}: {status.st_size:,} bytes, more than the limit of {limit:,}; "
                "use a smaller file"
            )
        return content


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a file; without O_NONBLOCK, a named pipe would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | _BINARY)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path that is renamed to `path` when the block ends without an error.

    After an error the temporary file is deleted, and `path` is unchanged. If `path` is a
    symbolic link, the link is replaced, and its target is unchanged.

    Args:
        path: of the file to write; its folder must exist.

    Yields:
        A path in the same folder that does not exist yet.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        # Otherwise a power failure could leave the new name with no content.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of `atomic_path`, left by processes that were killed.

    Args:
        folder: in which no other process is writing; need not exist.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def named(error: OSError, path: str | os.PathLike) -> OSError:
    """The same error with the name of the file, which errors of writing lack."""
    return type(error)(error.errno, error.strerror or str(error), str(path))


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file that other processes see completely or not at all.

    Args:
        path: of the file to write; its folder must exist.
        content: text, written as UTF-8, or bytes.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_lock(path: str | os.PathLike, *, wait: bool = False) -> Iterator[int | None]:
    """Holds the lock of a file, which is created if needed and is never truncated.

    The system releases the lock when the process ends, however it ends.

    Args:
        path: of the file; its folder must exist.
        wait: whether to wait for another process that holds it.

    Yields:
        The file's descriptor; None if this system or this disk has no locks.

    Raises:
        FileLockedError: if another process holds the lock, and `wait` is false.
        ValueError: if the path is a symbolic link, a hard link or a special file.
        OSError: if the file cannot be created or opened.
    """
    flags = os.O_RDWR | os.O_CREAT | _BINARY
    # Zero where the system has no such flag.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_plain(path) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _not_plain(path)
        yield descriptor if _acquire(descriptor, path, wait) else None
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: str | os.PathLike, wait: bool) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise FileLockedError(
            errno.EAGAIN, "another process holds the lock", str(path)
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _not_plain(path: str | os.PathLike) -> ValueError:
    return ValueError(
        f"{path}: a link or a special file, where only a regular file may be; remove it"
    )
