"""Metadata of a run: everything that is needed to use a trained network."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.classes import MAX_CLASSES
from jaxseg.utils.files import PREPARED_DIR

FORMAT_VERSION = 2
"""Version of the format of `to_json`. Version 1, without a number, is from jaxseg 0.1."""

FOLDER_DATASET = {
    "dataset": "folder",
    "root": "",
    "prepared_dir": PREPARED_DIR,
}
"""Data set of a network that was not trained by jaxseg: a folder, given when used."""

# Bounds on numbers, so that no file makes jaxseg build or draw without end.
MAX_CHANNELS = 1024
MAX_NAME = 256
"""Characters of the longest name of a class or a model."""

MAX_SIZE_PX = 2**26
"""Pixels of the largest `image_size`, as of an image that is predicted whole."""

MAX_SIDE_PX = 2**14
MAX_BATCH = 2**16
MAX_STEP = 2**53
MAX_MODEL_INTEGER = 2**13
MAX_MODEL_SUM = 2**16
MAX_DATA_INTEGER = 2**20
MAX_DATA_PIXELS = MAX_SIDE_PX**2
MAX_NESTING = 32

Color = tuple[int, int, int]


class MetadataError(ValueError):
    """Metadata that is damaged, incomplete, or of a newer version."""


@dataclass(frozen=True)
class RunMetadata:
    """Metadata of a trained network, stored beside its checkpoints.

    Attributes:
        model: keyword arguments of `jaxseg.create_model`.
        class_names: K names.
        palette: K RGB colors, from 0 to 255.
        normalization: normalization of the images.
        channels: number of channels of the images.
        image_size: (height, width) in pixels that images are resized to; None if they
            keep their size.
        data: keyword arguments of `jaxseg.data.create_source`, without the split. They
            name folders; do not use those of a stranger's metadata.
        train_split: name of the training split.
        val_split: name of the validation split.
        eval_batch_size: global batch size of evaluations.
        absent: how evaluations treat absent classes; see `Confusion.compute`.
        config: config of the run; None for imported weights.
        imported: origin of imported weights; None for a run.
        step: step of the loaded checkpoint; None in the metadata of a run.
        versions: versions of the libraries, by name.
        git_commit: commit of jaxseg's source tree, if it ran from one.
    """

    model: Mapping[str, Any]
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    normalization: Normalization
    channels: int = 3
    image_size: tuple[int, int] | None = None
    data: Mapping[str, Any] = field(default_factory=lambda: dict(FOLDER_DATASET))
    train_split: str = "train"
    val_split: str = "val"
    eval_batch_size: int = 8
    absent: str = "exclude"
    config: Mapping[str, Any] | None = None
    imported: Mapping[str, Any] | None = None
    step: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    def __post_init__(self):
        """Converts lists to tuples, and checks all fields.

        Raises:
            MetadataError: if a field has an invalid value, or a number is too large.
        """
        for name in ("class_names", "palette", "image_size"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        for name, (check, expected) in _CHECKS.items():
            if not check(getattr(self, name)):
                value = repr(getattr(self, name))
                shown = value if len(value) <= 80 else f"{value[:77]}..."
                raise MetadataError(f"{name} is {shown}; it must be {expected}.")
        _check_model_numbers(self.model)
        _check_data_numbers(self.data)
        if len(self.palette) != self.num_classes:
            raise MetadataError(
                f"palette has {len(self.palette)} colors for {self.num_classes} "
                "classes; it must have one color for each class."
            )
        if self.model.get("num_classes", self.num_classes) != self.num_classes:
            raise MetadataError(
                f"class_names has {self.num_classes} names, but the model has "
                f"num_classes={self.model['num_classes']}; they must be equal."
            )
        if any(
            len(values) not in (1, self.channels)
            for values in (self.normalization.mean, self.normalization.std)
        ):
            raise MetadataError(
                f"normalization is {self.normalization!r:.80}; it must have one value, or "
                f"one for each of the {self.channels} channels."
            )

    @property
    def model_name(self) -> str:
        """Name of the model, as in `jaxseg.list_models()`."""
        return self.model["name"]

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def replace(self, **changes: Any) -> "RunMetadata":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The metadata as JSON values, for `from_json`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["normalization"] = dataclasses.asdict(self.normalization)
        return {"format_version": FORMAT_VERSION} | fields

    @classmethod
    def from_json(cls, content: Any, source: str = "the metadata") -> "RunMetadata":
        """Reads the result of `to_json`, of this or an older version.

        Args:
            content: JSON values.
            source: their origin, for error messages.

        Raises:
            MetadataError: if a key is missing, unknown or has an invalid value, or the
                version is newer than this one.
        """
        if not isinstance(content, dict):
            raise MetadataError(f"{source} is damaged: it is not a JSON object.")
        version = content.get("format_version", 1)
        if not _is_positive(version):
            raise MetadataError(f"{source} is damaged: invalid format_version.")
        if version > FORMAT_VERSION:
            raise MetadataError(
                f"{source} has format version {version}, but this version of jaxseg "
                f"supports versions up to {FORMAT_VERSION}; install a newer jaxseg."
            )
        try:
            if version == 1:
                content = _from_version_1(content)
            known = {f.name: f for f in dataclasses.fields(cls)}
            given = {k: v for k, v in content.items() if k != "format_version"}
            if unknown := given.keys() - known.keys():
                raise MetadataError(f"the key {sorted(unknown)[0]!r:.80} is unknown.")
            required = {
                name
                for name, f in known.items()
                if f.default is f.default_factory is dataclasses.MISSING
            }
            if missing := required - given.keys():
                raise MetadataError(f"the key {sorted(missing)[0]!r} is missing.")
            given["normalization"] = _normalization(given["normalization"])
            return cls(**given)
        except MetadataError as error:
            raise MetadataError(f"{source} is damaged: {error}") from error
        except RecursionError as error:
            raise MetadataError(
                f"{source} is damaged: it is nested too deeply."
            ) from error


def _check_model_numbers(model: Mapping[str, Any]) -> None:
    """Bounds widths and depths before a model is built."""
    total = 0
    for name, value in _numbers("model", model):
        if isinstance(value, int):
            total += abs(value)
            _check_most(name, abs(value), MAX_MODEL_INTEGER)
        elif not math.isfinite(value):
            raise MetadataError(f"{name} is {value}; it must be finite.")
    _check_most("the sum of all integers of the model", total, MAX_MODEL_SUM)


def _check_data_numbers(data: Mapping[str, Any]) -> None:
    """Bounds numbers of examples and sizes of images before a data set is drawn."""
    areas: dict[str, int] = {}
    for name, value in _numbers("data", data):
        if not isinstance(value, int):
            continue
        _check_most(name, abs(value), MAX_DATA_INTEGER)
        owner, bracket, _ = name.rpartition("[")
        if bracket:
            areas[owner] = areas.get(owner, 1) * abs(value)
            _check_most(f"the product of {owner}", areas[owner], MAX_DATA_PIXELS)


def _check_most(name: str, value: int, most: int) -> None:
    if value > most:
        # Huge integers cannot be printed.
        shown = value if value < 10**30 else "too large"
        raise MetadataError(f"{name} is {shown}; it must be at most {most}.")


def _numbers(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All numbers in nested values, with names such as "model.depths[0]"."""
    if depth > MAX_NESTING:
        raise MetadataError(f"{name[:80]} is nested too deeply.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(f"{name}[{index}]", item, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _is_count(value: Any, most: int = MAX_STEP) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value <= most


def _is_positive(value: Any, most: int = MAX_STEP) -> bool:
    return _is_count(value, most) and value > 0


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(_is_count(v) and v <= 255 for v in value)
    )


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(_is_positive(side, MAX_SIDE_PX) for side in value)
        and value[0] * value[1] <= MAX_SIZE_PX
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (
        lambda x: (
            _is_mapping(x) and _is_text(x.get("name")) and len(x["name"]) <= MAX_NAME
        ),
        "the arguments of create_model, with a name",
    ),
    "class_names": (
        lambda x: (
            isinstance(x, tuple)
            and 0 < len(x) <= MAX_CLASSES
            and all(isinstance(name, str) and len(name) <= MAX_NAME for name in x)
        ),
        f"a tuple of 1 to {MAX_CLASSES} names of at most {MAX_NAME} characters",
    ),
    "palette": (
        lambda x: isinstance(x, tuple) and all(map(_is_color, x)),
        "a tuple of RGB colors from 0 to 255",
    ),
    "normalization": (
        lambda x: isinstance(x, Normalization),
        "a Normalization: numbers mean, and positive numbers std",
    ),
    "channels": (
        lambda x: _is_positive(x, MAX_CHANNELS),
        f"a positive integer up to {MAX_CHANNELS}",
    ),
    "image_size": (
        _or_none(_is_size),
        f"(height, width) in pixels, up to {MAX_SIDE_PX} each and {MAX_SIZE_PX} "
        "together, or None",
    ),
    "data": (_is_mapping, "the arguments of create_source"),
    "train_split": (_is_text, "a name"),
    "val_split": (_is_text, "a name"),
    "eval_batch_size": (
        lambda x: _is_positive(x, MAX_BATCH),
        f"a positive integer up to {MAX_BATCH}",
    ),
    "absent": (lambda x: x in ("exclude", "zero"), "'exclude' or 'zero'"),
    "config": (_or_none(_is_mapping), "a mapping, or None"),
    "imported": (_or_none(_is_mapping), "a mapping, or None"),
    "step": (_or_none(_is_count), "a step, or None"),
    "versions": (_is_mapping, "versions by name"),
    "git_commit": (_or_none(_is_text), "a commit, or None"),
}


def _normalization(value: Any) -> Any:
    """A `Normalization` from its JSON values; others are left for the checks."""
    if (
        isinstance(value, Mapping)
        and value.keys() == {"mean", "std"}
        and all(isinstance(v, list | tuple) for v in value.values())
    ):
        try:
            return Normalization(value["mean"], value["std"])
        except ValueError as error:
            raise MetadataError(f"normalization is {value!r:.80}: {error}") from error
    return value


def _tuples(value: Any) -> Any:
    """Converts lists to tuples, also nested ones."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Renames the keys of jaxseg 0.1 to the present ones.

    `jaxseg.save` of 0.1 stored any other keyword argument too; those are left out.
    """
    names = {f.name for f in dataclasses.fields(RunMetadata)} | {"eval"}
    new = {key: value for key, value in content.items() if key in names}
    if isinstance(new.get("model"), Mapping):
        new["model"] = _rename_parts(new["model"])
    evaluation = new.pop("eval", {})
    if not isinstance(evaluation, Mapping):
        raise MetadataError("eval must be a mapping.")
    new["eval_batch_size"] = evaluation.get("batch_size", 8)
    new["absent"] = evaluation.get("absent", "exclude")
    if isinstance(new.get("config"), Mapping):
        new["config"] = config_from_version_1(new["config"])
    return new


def config_from_version_1(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of jaxseg 0.1 with the present keys: `model.kwargs`, `loss.chunks`."""
    new = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for section, old, name in (
        ("model", "parts", "kwargs"),
        ("loss", "parts", "chunks"),
    ):
        if isinstance(new.get(section), Mapping) and old in new[section]:
            new[section][name] = new[section].pop(old)
    model = new.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("kwargs"), Mapping):
        new["model"]["kwargs"] = _rename_parts(model["kwargs"])
    return new


def _rename_parts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Renames `encoder_parts` and the like to `encoder_kwargs`."""
    return {
        f"{key.removesuffix('_parts')}_kwargs" if key.endswith("_parts") else key: value
        for key, value in arguments.items()
    }
