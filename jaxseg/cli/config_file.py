"""Config files: where the shipped ones are, and how one is read."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jaxseg

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def shipped_configs() -> dict[str, Path]:
    """Returns the config files that come with jaxseg, by name."""
    package = Path(jaxseg.__file__).parent
    folder = package / "configs"  # of an installed package
    if not folder.is_dir():
        folder = package.parent / "configs"  # of a checkout
    return {
        path.stem: path
        for path in sorted(folder.glob("*.py"))
        if path.stem != "__init__"
    }


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file and sets keys of it.

    The file is a Python file with a function `get_config()` that returns a config, in
    most cases a changed `default_config()`. It can import its neighbors, and the shipped
    configs by their names.

    Args:
        path: the file; "FILE:TEXT" calls `get_config(TEXT)`.
        overrides: command-line arguments that set keys, such as
            `--config.train.steps=100`.

    Returns:
        The config, locked.

    Raises:
        ValueError: if there is no such file, the file has an error, or a key does not
            exist or cannot have the value; the message names it.
    """
    from absl import flags
    from ml_collections import config_flags

    file, *text = path.split(":", maxsplit=1)
    config = _load(Path(file), text)
    values, argv = flags.FlagValues(), ["jaxseg", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        others = values(argv)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from None
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_key(error)) from None
    if others:
        raise ValueError(f"Unexpected arguments: {' '.join(others)}")
    return config


def _load(file: Path, arguments: list[str]) -> ConfigDict:
    from ml_collections import ConfigDict

    if not file.is_file():
        raise ValueError(
            f"There is no config file {file}; `jaxseg configs` lists and copies those "
            "that come with jaxseg."
        )
    # In sys.modules, because classes that the file defines may look up their module.
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with neighbors_importable(file.resolve().parent):
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise ValueError("has no function get_config()")
            config = module.get_config(*arguments)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(x.lineno) for x in frames if x.filename == str(file.absolute())]
        where = ":".join([str(file), *lines[-1:]])
        if _is_unknown_key(error):
            message = _unknown_key(error)
        elif isinstance(error, ValueError):
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{file}: get_config() must return a ConfigDict, such as default_config(), "
            f"not {type(config).__name__}."
        )
    return config


@contextmanager
def neighbors_importable(folder: Path) -> Iterator[None]:
    """Lets a config import its neighbors, from the current directory, and shipped ones.

    Neighbors are found first, so that their names are free; the others last.
    """
    last = [str(Path.cwd()), *{str(p.parent) for p in shipped_configs().values()}]
    added = [str(folder), *(path for path in last if path not in sys.path)]
    sys.path[:] = [added[0], *sys.path, *added[1:]]
    try:
        yield
    finally:
        for path in added:
            if path in sys.path:
                sys.path.remove(path)


def _is_unknown_key(error: Exception) -> bool:
    """Whether this is how ml_collections reports that a config has no such key."""
    return (
        isinstance(error, AttributeError)
        and bool(error.args)
        and isinstance(error.args[0], KeyError)
    )


def _unknown_key(error: Exception) -> str:
    while error.args and isinstance(error.args[0], Exception):  # wrapped, maybe twice
        error = error.args[0]
    text = " ".join(str(error.args[0]).split())
    # In a locked config the message also lists all fields that there are.
    text = re.sub(r'^Key ("[^"]*") does not exist.*?(?=Did you mean|$)', r"\1 ", text)
    return f"the config has no key {text.strip()}"
