"""Tiny data sets on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import Source, create_source
from jaxseg.data.records import DamagedDataError


class FolderWriter:
    """Writes images and masks in the layout of the data set `folder`."""

    def __init__(self, root):
        self.root = root

    def add(self, stem, image, mask, *, split="train", suffix=".png", mask_suffix=None):
        """Writes a pair; arrays, PIL images or None for a file left out."""
        for kind, content, end in (
            ("images", image, suffix),
            ("masks", mask, mask_suffix or ".png"),
        ):
            folder = self.root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            if content is None:
                continue
            if isinstance(content, np.ndarray):
                content = Image.fromarray(content)
            content.save(folder / (stem + end), **_LOSSLESS.get(end, {}))
        return self

    def describe(self, **content):
        """Writes `classes.json`."""
        (self.root / "classes.json").write_text(json.dumps(content))
        return self

    def fill(self, count, *, split="train", size=(8, 10), sizes=None, num_classes=3):
        """Writes pairs whose image repeats the mask's values; returns the masks."""
        rng = np.random.default_rng(len(split))
        masks = {}
        for i in range(count):
            height, width = sizes[i] if sizes else size
            mask = rng.integers(0, num_classes, (height, width), dtype=np.uint8)
            mask[0, 0] = num_classes - 1
            self.add(f"{split}{i:02d}", np.stack([mask] * 3, -1), mask, split=split)
            masks[f"{split}{i:02d}"] = mask
        return masks

    def source(self, split="train", **options):
        """Opens a split."""
        prepared_dir = self.root.parent / "prepared"
        return create_source(
            "folder", split, root=str(self.root), prepared_dir=prepared_dir, **options
        )


_LOSSLESS = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}


@pytest.fixture
def folder(tmp_path):
    """An empty folder data set."""
    (tmp_path / "root").mkdir()
    return FolderWriter(tmp_path / "root")


def damage_record(source, index):
    """Flips a bit of the file such that one record is damaged and no other."""
    (path,) = source.directory.glob(f"*-{source.split}.array_record-*")
    content = path.read_bytes()
    for at in range(64, len(content.rstrip(b"\0")), 8):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            damaged = _damaged_records(Source(source.directory, source.split))
        except DamagedDataError:
            continue
        if damaged == [index]:
            return
    raise AssertionError("no bit damages this record alone")


def _damaged_records(source):
    damaged = []
    for index in range(len(source)):
        try:
            source.name(index)
        except DamagedDataError:
            damaged.append(index)
    return damaged
