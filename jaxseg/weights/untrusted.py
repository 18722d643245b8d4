"""Safe reading of untrusted files, with bounds on memory."""

import contextlib
import os
import stat
import zipfile
from collections.abc import Iterator

from jaxseg.weights.mapping import WeightsError

MAX_BYTES = 2**35
"""Bytes of the largest weight file that is read."""

_FREE = 2**28
_RATIO = 100
_HOLES = 8  # weights cannot be compressed to an eighth by a file system


def allowance(size: int) -> int:
    """The bytes that the arrays of a file may need: 256 MiB or 100 times its size."""
    return max(_FREE, _RATIO * size)


@contextlib.contextmanager
def guarded(path: str | os.PathLike) -> Iterator[None]:
    """Checks that a file is regular and not too large.

    Converts every exception in the block to a WeightsError that names the file.
    """
    try:
        status = os.stat(path)  # opening a named pipe would wait
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError("is not a regular file; use a copy of it.")
        if status.st_size > MAX_BYTES:
            raise WeightsError(f"is larger than {MAX_BYTES:,} bytes.")
        stored = getattr(status, "st_blocks", status.st_size) * 512
        if status.st_size > allowance(0) and status.st_size > _HOLES * stored:
            raise WeightsError(
                f"has {status.st_size:,} bytes, of which only {stored:,} are stored; the "
                "others are zeros, so it is no weight file."
            )
        yield
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path} begins like a zip file, but cannot be read ({error!s:.200}); if the "
            "download was interrupted, download it again."
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # parsers raise many kinds of errors for damaged files
        raise WeightsError(
            f"{path} cannot be read; it is damaged, or not a weight file "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


@contextlib.contextmanager
def open_zip(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file whose entries have different names and are not too large."""
    with zipfile.ZipFile(path) as archive:
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise WeightsError("is a zip file with two entries of the same name.")
        entries = archive.infolist()
        total = sum(max(entry.file_size, entry.compress_size) for entry in entries)
        if total > allowance(os.path.getsize(path)):
            raise WeightsError(
                f"declares {total} bytes, far more than expected for its size."
            )
        yield archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Reads an entry, up to the size that it declares."""
    entry = archive.getinfo(name)
    # Other methods may expand without bound.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError("is a zip file with an unsupported compression method.")
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
    if len(content) < entry.file_size:
        raise WeightsError(f"is damaged: its entry {name!r} ends early.")
    return content
