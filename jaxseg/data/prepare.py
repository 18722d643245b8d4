"""Preparing a data set: once, atomically, and again after its source has changed."""

import contextlib
import errno
import inspect
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from jaxseg.data.datasets import SegmentationBuilder
from jaxseg.data.records import META_FILE, Records, checksum
from jaxseg.data.trust import check_trusted, explain_denied, protect
from jaxseg.utils import registry
from jaxseg.utils.files import (
    PREPARED_DIR,
    FileLockedError,
    expand_home,
    file_lock,
    write_atomically,
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(
    dataset: str,
    *,
    root: str = "",
    prepared_dir: str = PREPARED_DIR,
    trust_prepared: bool = False,
    **options: Any,
) -> Path:
    """Prepares a data set unless it has been prepared already.

    The data are written to a temporary folder and moved in one step to
    `<prepared_dir>/<dataset>/<fingerprint>`, so this folder is always complete.
    Processes that need the same data at the same time wait for each other. Where files
    cannot be locked (Windows, some network file systems, a folder of another user), all
    of them prepare, and the first to finish wins.

    Args:
        dataset: name of a registered or built-in data set; see `jaxseg.register`.
        root: folder of the original data; empty for a synthetic data set.
        prepared_dir: folder of prepared data.
        trust_prepared: whether to use prepared data that another user could have
            written.
        **options: further arguments of the dataset builder.

    Returns:
        The directory of the prepared data.

    Raises:
        ValueError: if the data set or an option is unknown, or the original data are
            not valid; names the file and the cure.
        UntrustedDataError: if another user could have written the prepared data.
        OSError: if the folder cannot be written to, or the disk is full.
    """
    parent = expand_home(prepared_dir) / dataset
    aside = parent / f".preparing-{uuid.uuid4().hex}"
    builder = _create_builder(dataset, root, aside, options)
    directory = parent / builder.fingerprint()
    with explain_denied(parent):
        prepared = directory.exists()
        if not prepared:
            parent.mkdir(parents=True, exist_ok=True)
    if not prepared:
        with _locked(parent / ".lock") as alone:
            if not directory.exists():
                if alone:
                    _remove_leftovers(parent)
                _prepare(builder, aside, directory)
    if not trust_prepared:
        check_trusted(directory)
    return directory


def _prepare(builder: SegmentationBuilder, aside: Path, directory: Path) -> None:
    """Prepares the data in the folder `aside`, and moves them to `directory`."""
    start = time.monotonic()
    logging.info("Preparing %s in %s", builder.name, directory)
    with explain_denied(directory.parent):
        aside.mkdir(mode=0o700)  # before TFDS does, so that nobody else writes to it
    try:
        with _explain_full_disk(directory.parent):
            built = _build(builder)
        try:
            built.rename(directory)
        except OSError as error:
            if not directory.exists():  # otherwise another process was first
                raise OSError(
                    error.errno,
                    f"{error.strerror}; remove what is in the place of the prepared "
                    "data, or choose another prepared_dir",
                    str(directory),
                ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    counts = {split: len(sizes) for split, sizes in builder.sizes.items()}
    seconds = time.monotonic() - start
    logging.info(
        "Prepared %s %s in %.1f s: %s", builder.name, counts, seconds, directory
    )


def _remove_leftovers(parent: Path) -> None:
    """Removes what processes of this user left when they were killed."""
    for leftover in parent.glob(".preparing-*"):
        with contextlib.suppress(FileNotFoundError):  # removed by its own process
            status = leftover.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        for code in _FULL:  # array_record gives only the text
            if os.strerror(code) in str(error):
                raise OSError(
                    code,
                    f"{os.strerror(code)}, so the data cannot be prepared; free some "
                    "space, or choose another prepared_dir",
                    str(folder),
                ) from error
        raise


def _create_builder(
    dataset: str, root: str, data_dir: Path, options: dict
) -> SegmentationBuilder:
    builder = registry.lookup("dataset", dataset)
    signature = inspect.signature(builder)
    known = sorted(set(signature.parameters) - {"data_dir", "root"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"data set {dataset!r} has no option {', '.join(unknown)}; known: "
            f"{', '.join(known) or 'none'}"
        )
    if "root" in signature.parameters:
        options = {"root": root and str(expand_home(root)), **options}
    elif root:
        raise ValueError(
            f"data set {dataset!r} is synthetic and has no root; leave the root empty "
            f"instead of {root!r}"
        )
    return builder(data_dir=str(data_dir), **options)


def _build(builder: SegmentationBuilder) -> Path:
    """Writes the records and their description; returns the folder."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with _quiet():
        builder.download_and_prepare(download_config=config)
    written = Path(builder.data_dir)
    splits = {}
    for split, sizes in builder.sizes.items():
        # TFDS orders records by a hash of their names, so the order is read back.
        records = Records(written, builder.name, split)
        names = [records[i]["name"].decode() for i in range(len(records))]
        splits[split] = [sizes[name] for name in names]
    meta = {
        "name": builder.name,
        "class_names": builder.class_names,
        "palette": builder.palette,
        "channels": builder.channels,
        "sizes": splits,
        "fingerprint": builder.fingerprint(),
    }
    content = json.dumps(meta | {"checksum": checksum(meta)})
    write_atomically(written / META_FILE, content)
    for path in (written, *written.iterdir()):
        protect(path)
    return written


@contextlib.contextmanager
def _quiet():
    """Disables TFDS's logging and its progress bars; the builder has its own."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds a file's lock; yields False if the file cannot be locked."""
    with contextlib.ExitStack() as stack:
        lock = None
        # The file may belong to another user, who shares the folder.
        with contextlib.suppress(PermissionError):
            try:
                lock = stack.enter_context(file_lock(path))
            except FileLockedError:
                logging.warning(
                    "Waiting for the process that holds %s and prepares the data", path
                )
                lock = stack.enter_context(file_lock(path, wait=True))
        yield lock is not None
