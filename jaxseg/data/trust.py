"""Who could have written prepared data, and who may write to its folder."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import grp
    import pwd

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UntrustedDataError(ValueError):
    """Prepared data that another user could have written."""


def check_trusted(folder: Path) -> None:
    """Checks that only this user and root could have written a folder and its files.

    A group that has the user's name and no other members is the user's own. Where files
    have no owners (Windows), nothing is checked.

    Args:
        folder: of prepared data.

    Raises:
        UntrustedDataError: if another user could have written them; names the folder,
            the user and the cure.
    """
    if sys.platform == "win32":
        return
    with explain_denied(folder):
        found = {path: path.lstat() for path in (folder, *folder.iterdir())}
        # What a symbolic link leads to is checked in addition to the link.
        target = folder.stat()
    for path, status in (*found.items(), (folder, target)):
        if status.st_uid not in (0, os.geteuid()):
            owner = _user(status.st_uid)
            raise UntrustedDataError(
                f"{folder}: prepared data of another user ({path.name} belongs to "
                f"{owner}); choose another prepared_dir, or, if you trust {owner}, set "
                "trust_prepared=True"
            )
        if writers := _other_writers(status):
            raise UntrustedDataError(
                f"{folder}: {writers} can change these prepared data (permissions of "
                f"{path.name}); if you trust them, set trust_prepared=True, or remove "
                f"the permission: chmod -R go-w {folder}"
            )


def protect(path: Path) -> None:
    """Removes the permission of other users to write, where files have permissions."""
    with suppress(OSError):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_WRITE)


@contextmanager
def explain_denied(folder: Path) -> Iterator[None]:
    """Adds the owner and the cure to errors about missing permissions.

    Args:
        folder: of prepared data.

    Raises:
        PermissionError: if the block is denied access.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DENIED:
            raise
        denied = Path(error.filename or folder)
        raise PermissionError(
            errno.EACCES,
            f"{os.strerror(error.errno)}; {_owner(denied)}. Choose another "
            "prepared_dir, or ask the owner for access",
            str(denied),
        ) from error


def _other_writers(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):  # links have no permissions
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "all users"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid):
        return f"the group {_group(status.st_gid)}"
    return ""


def _is_own_group(gid: int) -> bool:
    """Whether a group is the one that many systems create for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        gid == user.pw_gid
        and group.gr_name == user.pw_name
        and set(group.gr_mem) <= {user.pw_name}
    )


def _owner(path: Path) -> str:
    """The owner of a path, or of the nearest folder above it that can be seen."""
    if sys.platform != "win32":
        for place in (path, *path.absolute().parents):
            with suppress(OSError):
                return f"{place} belongs to {_user(place.stat().st_uid)}"
    return "it belongs to another user"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name!r}"
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return repr(grp.getgrgid(gid).gr_name)
    except KeyError:
        return str(gid)
