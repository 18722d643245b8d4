"""The data settings that this user has trained with.

The metadata of a workdir name folders: where the data are, and where prepared data are
written. A workdir may come from a stranger, so these settings are used only if this user
has trained with the same ones before. They are remembered outside all workdirs, in
`~/.local/state/jaxseg/data` or under `XDG_STATE_HOME`, one file each.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from absl import logging

from jaxseg.metadata import RunMetadata
from jaxseg.utils.files import write_atomically


def remember_data(metadata: RunMetadata) -> None:
    """Remembers the data settings of a run, for `is_known_data`.

    If the folder cannot be written, this is logged, and nothing is remembered.

    Args:
        metadata: whose `data` and `eval_batch_size` come from the user.
    """
    text = _text(metadata)
    try:
        path = _path(text)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, text)
    except (OSError, RuntimeError) as error:  # the second without a home folder
        logging.warning(
            "Cannot remember the data settings of this run (%s): to evaluate it, give "
            "them again, or set XDG_STATE_HOME to a folder that you can write to",
            error,
        )


def is_known_data(metadata: RunMetadata) -> bool:
    """Whether this user has trained with the data settings of a run."""
    with contextlib.suppress(OSError, RuntimeError):
        return _path(_text(metadata)).is_file()
    return False


def _text(metadata: RunMetadata) -> str:
    data = dict(metadata.data)
    for key in ("root", "prepared_dir"):
        # A relative path names another folder in another directory.
        if isinstance(data.get(key), str) and data[key]:
            data[key] = os.path.abspath(os.path.expanduser(data[key]))
    settings = {"data": data, "eval_batch_size": metadata.eval_batch_size}
    return json.dumps(settings, sort_keys=True)


def _path(text: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = hashlib.sha256(text.encode()).hexdigest()
    return Path(state).expanduser() / "jaxseg" / "data" / f"{name}.json"
