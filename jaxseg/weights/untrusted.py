"""Files that nobody vouches for: what reading one can do and cost is bounded."""

import contextlib
import os
import zipfile
from collections.abc import Iterator

from jaxseg.weights.mapping import WeightsError

_FREE = 2**28
_RATIO = 100


def allowance(path: str | os.PathLike) -> int:
    """Bytes that a file's arrays may take: 256 MiB, or a hundred times its size."""
    return max(_FREE, _RATIO * os.path.getsize(path))


@contextlib.contextmanager
def guarded(path: str | os.PathLike) -> Iterator[None]:
    """Makes whatever is raised within a WeightsError that names the file."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path} begins as a zip, but cannot be read as one ({error}); is it a "
            "download that ended early?"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # parsers raise many kinds on what is broken
        raise WeightsError(
            f"{path} cannot be read; it is damaged, or not what it seems to be "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


@contextlib.contextmanager
def open_zip(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """Opens a zip whose entries, as declared, are distinct and keep to the allowance."""
    with zipfile.ZipFile(path) as archive:
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise WeightsError("is a zip that has two entries of one name.")
        entries = archive.infolist()
        total = sum(max(entry.file_size, entry.compress_size) for entry in entries)
        if total > allowance(path):
            raise WeightsError(
                f"declares {total} bytes, far more than a file of its size can hold."
            )
        yield archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Reads an entry; never more than it declares, whatever it would expand to."""
    entry = archive.getinfo(name)
    # The other methods expand without a bound.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError("is a zip, but neither stored nor deflated.")
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
    if len(content) < entry.file_size:
        raise WeightsError(f"is damaged: its entry {name!r} ends early.")
    return content
