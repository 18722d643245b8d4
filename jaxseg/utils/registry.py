"""Models, encoders, losses and so on by name: built in, registered, or installed.

A name is looked up among the built-in ones, then among those that `register` was called
with, then among the entry points of installed packages, group `jaxseg.<kind>`:

    [project.entry-points."jaxseg.encoder"]
    my_encoder = "my_package.encoders:MyEncoder"
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from jaxseg.utils.names import suggest_name

T = TypeVar("T")

KINDS = (
    "model",
    "encoder",
    "skip",
    "upsampler",
    "block",
    "decoder",
    "head",
    "loss",
    "dataset",
    "tracker",
)

_BUILT_IN: dict[str, Mapping[str, Any]] = {}
_REGISTERED: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


class UnknownNameError(ValueError):
    """Nothing of this kind has the name.

    Attributes:
        kind: one of `KINDS`.
        name: that was looked up.
    """

    def __init__(self, kind: str, name: str, known: tuple[str, ...]):
        """Suggests the closest of the known names."""
        super().__init__(f"Unknown {kind} {name!r}{suggest_name(name, known)}")
        self.kind = kind
        self.name = name


def register(kind: str, name: str) -> Callable[[T], T]:
    """Gives a class or function a name that configs and `create_model` can use.

        @jaxseg.register("encoder", "my_encoder")
        class MyEncoder(nn.Module): ...

    Args:
        kind: "model", "encoder", "skip", "upsampler", "block", "decoder", "head",
            "loss", "dataset" or "tracker"; docs/extending.md describes each.
        name: the name.

    Returns:
        A decorator that returns what it decorates, unchanged.

    Raises:
        ValueError: if the kind is unknown, or the name belongs to something else.
    """
    _check_kind(kind)

    def add(component: T) -> T:
        old = _REGISTERED[kind].get(name)
        # A config file may be executed more than once in a process.
        if name in _BUILT_IN.get(kind, {}) or (
            old is not None and _origin(old) != _origin(component)
        ):
            raise ValueError(
                f"The {kind} {name!r} exists already; choose another name."
            )
        _REGISTERED[kind][name] = component
        return component

    return add


def add_built_in(kind: str, table: Mapping[str, Any]) -> None:
    """Makes a package's own table of names known; called once, where it is defined.

    Raises:
        ValueError: if a name of the table was registered before.
    """
    _check_kind(kind)
    for name in _REGISTERED[kind].keys() & table.keys():
        raise ValueError(f"The {kind} {name!r} exists already; choose another name.")
    _BUILT_IN[kind] = table


def lookup(kind: str, name: str) -> Any:
    """The class or function of a kind that has a name.

    Raises:
        UnknownNameError: if there is none; the message lists all names.
    """
    _check_kind(kind)
    for table in (_BUILT_IN.get(kind, {}), _REGISTERED[kind]):
        if name in table:
            return table[name]
    for entry_point in entry_points(group=f"jaxseg.{kind}", name=name):
        return entry_point.load()
    raise UnknownNameError(kind, name, names(kind))


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted; installed packages are not imported for it."""
    _check_kind(kind)
    installed = (
        entry_point.name for entry_point in entry_points(group=f"jaxseg.{kind}")
    )
    return tuple(sorted({*_BUILT_IN.get(kind, {}), *_REGISTERED[kind], *installed}))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}{suggest_name(kind, KINDS)}")


def _origin(component: Any) -> tuple[str | None, str, str]:
    """Where something is defined: it is the same if its file is executed again."""
    try:
        file = inspect.getsourcefile(component)
    except TypeError:  # an object without source, such as a functools.partial
        file = None
    name = getattr(component, "__qualname__", repr(component))
    return file, getattr(component, "__module__", ""), name
