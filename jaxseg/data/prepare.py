"""Preparing a data set: once, atomically, and again after its source has changed."""

import contextlib
import inspect
import json
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from jaxseg.data.datasets import SegmentationBuilder
from jaxseg.utils import registry
from jaxseg.utils.files import PREPARED_DIR

if sys.platform != "win32":
    import fcntl

META_FILE = "jaxseg.json"


def prepare(
    dataset: str, *, root: str = "", prepared_dir: str = PREPARED_DIR, **options: Any
) -> Path:
    """Prepares a data set unless it has been prepared already.

    The data are written to a temporary folder and moved in one step to
    `<prepared_dir>/<dataset>/<fingerprint>`, so this folder is always complete.
    Processes that need the same data at the same time wait for each other. Where files
    cannot be locked (Windows, some network file systems), all of them prepare, and the
    first to finish wins.

    Args:
        dataset: name of a registered or built-in data set; see `jaxseg.register`.
        root: folder of the original data; empty for a synthetic data set.
        prepared_dir: folder of prepared data.
        **options: further arguments of the dataset builder.

    Returns:
        The directory of the prepared data.

    Raises:
        ValueError: if the data set or an option is unknown, or the original data are
            not valid; names the file and the cure.
    """
    parent = Path(prepared_dir).expanduser() / dataset
    aside = parent / f".preparing-{uuid.uuid4().hex}"
    builder = _create_builder(dataset, root, aside, options)
    directory = parent / builder.fingerprint()
    if directory.exists():
        return directory
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / ".lock") as alone:
        if directory.exists():
            return directory
        if alone:  # left by processes that were killed
            for leftover in parent.glob(".preparing-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            start = time.monotonic()
            logging.info("Preparing %s in %s", dataset, directory)
            built = _build(builder)
            with contextlib.suppress(OSError):  # another process was first
                built.rename(directory)
            if not directory.exists():
                raise OSError(f"cannot move {built} to {directory}")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    counts = {split: len(sizes) for split, sizes in builder.sizes.items()}
    seconds = time.monotonic() - start
    logging.info("Prepared %s %s in %.1f s: %s", dataset, counts, seconds, directory)
    return directory


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
        options = {"root": root and str(Path(root).expanduser()), **options}
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
        records = open_records(written, split)
        names = [records[i]["name"].decode() for i in range(len(records))]
        splits[split] = [sizes[name] for name in names]
    meta = {
        "name": builder.name,
        "class_names": builder.class_names,
        "palette": builder.palette,
        "channels": builder.channels,
        "sizes": splits,
    }
    (written / META_FILE).write_text(json.dumps(meta))
    return written


def open_records(directory: Path, split: str) -> Sequence[dict[str, bytes]]:
    """Opens the records of a split: {"image", "label", "name"} as stored bytes."""
    skip = tfds.decode.SkipDecoding()
    decoders = {"image": skip, "label": skip}
    with _quiet():
        builder = tfds.builder_from_directory(directory)
        return builder.as_data_source(
            split,  # pyright: ignore[reportCallIssue]  # decorated by TFDS
            decoders=decoders,
        )


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
def _locked(path: Path):
    """Holds a file's lock; yields False where the system or the disk has no locks."""
    if sys.platform == "win32":
        yield False
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Waiting for another process to prepare %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
