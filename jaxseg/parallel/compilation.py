"""JAX's cache of compiled programs on disk: a second start does not compile again."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs in `~/.cache/jaxseg/xla`, or under `XDG_CACHE_HOME`.

    To be called before the first compilation. A user who chose a directory, or none,
    by `JAX_COMPILATION_CACHE_DIR` or `jax.config` is left alone; where the directory
    cannot be made, programs are compiled as if there were no cache.

    Returns:
        The directory, or None where nothing was changed.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = Path(caches).expanduser() / "jaxseg" / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
