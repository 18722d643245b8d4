"""What a trained network needs to be used: the one description of a run."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.files import PREPARED_DIR

FORMAT_VERSION = 2
"""Of `to_json`. Version 1, without a number, is what jaxseg 0.1 wrote."""

FOLDER_DATASET = {
    "dataset": "folder",
    "root": "",
    "prepared_dir": PREPARED_DIR,
}
"""The data of a network that was not trained by jaxseg: a folder yet to be named."""

Color = tuple[int, int, int]


class MetadataError(ValueError):
    """A description that is damaged, incomplete, or of a newer version."""


@dataclass(frozen=True)
class RunMetadata:
    """A trained network's description, stored beside its checkpoints.

    Attributes:
        model: keyword arguments of `jaxseg.create_model`.
        class_names: K names.
        palette: K colors, RGB in 0..255.
        normalization: of the images.
        channels: of the images.
        image_size: height and width in pixels that images are resized to; None for
            their own size.
        data: keyword arguments of `jaxseg.data.create_source`, without the split.
        train_split: name of the training split.
        val_split: name of the validation split.
        eval_batch_size: global batch size of evaluations.
        absent: what evaluations do with absent classes; see `Confusion.compute`.
        config: the config of the run; None for weights that were imported.
        imported: where imported weights came from; None for a run.
        step: of the checkpoint that was loaded; None for the description of a run.
        versions: versions of the libraries that wrote it.
        git_commit: of jaxseg's source tree, where it ran from one.
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
        """Makes tuples of lists, and checks every field.

        Raises:
            MetadataError: if a value is not what the field is for.
        """
        for name in ("class_names", "palette", "image_size"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        for name, (check, expected) in _CHECKS.items():
            if not check(getattr(self, name)):
                value = repr(getattr(self, name))
                shown = value if len(value) <= 80 else f"{value[:77]}..."
                raise MetadataError(f"{name} is {shown}; it must be {expected}.")
        if len(self.palette) != self.num_classes:
            raise MetadataError(
                f"palette has {len(self.palette)} colors for {self.num_classes} "
                "classes; it must have one color for each class."
            )
        if self.model.get("num_classes", self.num_classes) != self.num_classes:
            raise MetadataError(
                f"class_names has {self.num_classes} names, and the model "
                f"{self.model['num_classes']} classes; both must be equal."
            )
        if any(
            len(values) not in (1, self.channels)
            for values in (self.normalization.mean, self.normalization.std)
        ):
            raise MetadataError(
                f"normalization is {self.normalization}; it must have one value, or "
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
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON values, for `from_json`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["normalization"] = dataclasses.asdict(self.normalization)
        return {"format_version": FORMAT_VERSION} | fields

    @classmethod
    def from_json(cls, content: Any, source: str = "the metadata") -> "RunMetadata":
        """Reads what `to_json` gave, or what an earlier version wrote.

        Args:
            content: JSON values.
            source: where they come from, for error messages.

        Raises:
            MetadataError: if a key is missing, unknown or has a wrong value, or the
                version is newer than this one.
        """
        if not isinstance(content, dict):
            raise MetadataError(f"{source} is damaged: it is not a JSON object.")
        version = content.get("format_version", 1)
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise MetadataError(
                f"{source} has format version {version}, and this jaxseg reads up to "
                f"{FORMAT_VERSION}; install a newer jaxseg."
            )
        try:
            if version == 1:
                content = _from_version_1(content)
            known = {f.name: f for f in dataclasses.fields(cls)}
            given = {k: v for k, v in content.items() if k != "format_version"}
            if unknown := given.keys() - known.keys():
                raise MetadataError(f"unknown key {sorted(unknown)[0]!r}.")
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
        except (TypeError, AttributeError, KeyError) as error:
            raise MetadataError(
                f"{source} is damaged: {type(error).__name__}: {error}."
            ) from error


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(v, int) and v > 0 for v in value)
    )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (
        lambda x: _is_mapping(x) and _is_text(x.get("name")),
        "the arguments of create_model, with a name",
    ),
    "class_names": (
        lambda x: isinstance(x, tuple) and bool(x) and all(map(_is_text, x)),
        "a tuple of names, at least one",
    ),
    "palette": (
        lambda x: isinstance(x, tuple) and all(map(_is_color, x)),
        "a tuple of RGB colors in 0..255",
    ),
    "normalization": (lambda x: isinstance(x, Normalization), "a Normalization"),
    "channels": (_is_positive, "a positive whole number"),
    "image_size": (_or_none(_is_size), "(height, width) in pixels, or None"),
    "data": (_is_mapping, "the arguments of create_source"),
    "train_split": (_is_text, "a name"),
    "val_split": (_is_text, "a name"),
    "eval_batch_size": (_is_positive, "a positive whole number"),
    "absent": (lambda x: x in ("exclude", "zero"), "'exclude' or 'zero'"),
    "config": (_or_none(_is_mapping), "a mapping, or None"),
    "imported": (_or_none(_is_mapping), "a mapping, or None"),
    "step": (_or_none(lambda x: isinstance(x, int) and x >= 0), "a step, or None"),
    "versions": (_is_mapping, "versions by name"),
    "git_commit": (_or_none(_is_text), "a commit, or None"),
}


def _normalization(value: Any) -> Any:
    """What `Normalization` was written as; anything else is for the checks to refuse."""
    if isinstance(value, Mapping) and value.keys() == {"mean", "std"}:
        return Normalization(tuple(value["mean"]), tuple(value["std"]))
    return value


def _tuples(value: Any) -> Any:
    """The same with tuples for lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Renames what jaxseg 0.1 called otherwise."""
    new = dict(content)
    new["model"] = _kwargs_for_parts(content["model"])
    evaluation = new.pop("eval", {})
    new["eval_batch_size"] = evaluation.get("batch_size", 8)
    new["absent"] = evaluation.get("absent", "exclude")
    if new.get("config") is not None:
        new["config"] = config_from_version_1(new["config"])
    return new


def config_from_version_1(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of jaxseg 0.1 with today's keys: `model.kwargs`, `loss.chunks`."""
    new = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for section, old, name in (
        ("model", "parts", "kwargs"),
        ("loss", "parts", "chunks"),
    ):
        if old in new.get(section, {}):
            new[section][name] = new[section].pop(old)
    if "kwargs" in new.get("model", {}):
        new["model"]["kwargs"] = _kwargs_for_parts(new["model"]["kwargs"])
    return new


def _kwargs_for_parts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`encoder_parts` and the like were renamed to `encoder_kwargs`."""
    return {
        f"{key.removesuffix('_parts')}_kwargs" if key.endswith("_parts") else key: value
        for key, value in arguments.items()
    }
