"""JAX's cache of compiled programs on disk, so that a second start does not compile."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Caches compiled programs in `~/.cache/jaxseg/xla`, or under `XDG_CACHE_HOME`.

    Must be called before the first compilation. Does nothing if the user has set a
    directory with `JAX_COMPILATION_CACHE_DIR` or `jax.config`, or if the directory
    cannot be created.

    Returns:
        The directory, or None if nothing was changed.
    """
    # JAX adds its options to `config` at run time.
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is not None:
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        directory = Path(caches).expanduser() / "jaxseg" / "xla"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the second without a home folder
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
