"""What a config means: arguments of the builders that its sections are for."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import data
from jaxseg.checkpoints.run import METADATA, PretrainedWeights, read_metadata
from jaxseg.losses import by_columns, cross_entropy
from jaxseg.ops.image_normalization import Normalization
from jaxseg.utils.trees import path_name
from jaxseg.weights.mapping import IMAGENET


class ConfigError(ValueError):
    """A value in the config cannot be used; the message names its key."""


@contextmanager
def config_section(name: str) -> Iterator[None]:
    """Names the section of the config in the errors of the builder that it is for.

    Raises:
        ConfigError: in place of a ValueError.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{name}: {error}") from error


def split_stages(config: ConfigDict, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """The config and workdir of each stage; those given, where there are no stages."""
    if not config.stages:
        return [(config, workdir)]
    found: list[tuple[ConfigDict, Path]] = []
    for name, changes in config.stages:
        stage = config.copy_and_resolve_references()
        stage.stages = ()
        if found:
            stage.init_from, stage.init_head = str(found[-1][1]), "keep"
        with stage.unlocked():
            stage.update_from_flattened_dict(changes)
        found.append((stage, workdir / name))
    return found


def flatten_config(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """All that a run is started with, by dotted names."""
    started = {"workdir": str(workdir.absolute()), "jax": jax.__version__}
    return started | _named(config.to_dict())


def config_changes(config: ConfigDict, workdir: Path) -> list[str]:
    """What the config says otherwise than that of the run in the workdir, a line each.

    Where the workdir says nothing of its run, nothing has changed.
    """
    before = (workdir / METADATA).is_file() and read_metadata(workdir).config
    if not before:
        return []
    # By way of JSON, as it was written: there are no tuples in it.
    was, now = _named(before), _named(json.loads(json.dumps(config.to_dict())))
    lines = {
        name: (was.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(was.keys() | now.keys())
    }
    return [
        f"{name}: {old} -> {new}" for name, (old, new) in lines.items() if old != new
    ]


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: not isinstance(x, dict)
    )
    return {path_name(path, "."): leaf for path, leaf in leaves}


def check_config(config: ConfigDict) -> None:
    """Raises a ValueError for numbers that no builder would look at in time."""
    for section, name, least in (
        ("train", "steps", 1),
        ("train", "batch_size", 1),
        ("optimizer", "accumulate_steps", 1),
        ("train", "log_every_steps", 0),
        ("train", "eval_every_steps", 0),
        ("train", "save_every_steps", 0),
        ("eval", "batch_size", 1),
        ("eval", "overlays", 0),
    ):
        value = config[section][name]
        if value < least:
            raise ValueError(f"{section}.{name}={value}; it is at least {least}.")
    steps, accumulated = config.train.steps, config.optimizer.accumulate_steps
    if steps % accumulated:
        raise ValueError(
            f"train.steps={steps} is no multiple of optimizer.accumulate_steps="
            f"{accumulated}: the last batches would change nothing. Take "
            f"{steps - steps % accumulated or accumulated} steps."
        )
    decay = config.train.ema_decay
    if not 0 <= decay < 1:
        raise ValueError(
            f"train.ema_decay={decay}; give a share below 1, such as 0.999, or 0 for "
            "no average."
        )
    if config.eval.absent not in ("exclude", "zero"):
        raise ConfigError(
            f"config.eval.absent={config.eval.absent!r}; it must be exclude or zero."
        )
    size = config.data.image_size
    if size is not None and not (
        len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    ):
        raise ConfigError(
            f"config.data.image_size={tuple(size)}; give a height and a width in pixels, such "
            "as (176, 240)."
        )


def dataset_kwargs(config: ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `data.create_source`, but for the split."""
    section = config.data
    return {
        "dataset": section.dataset,
        # Absolute, so that the workdir can be evaluated from anywhere.
        "root": section.root and str(Path(section.root).expanduser().resolve()),
        "prepared_dir": section.prepared_dir,
        **section.options.to_dict(),
    }


def find_normalization(
    config: ConfigDict, workdir: Path, pretrained: PretrainedWeights | None
) -> Normalization:
    """The normalization in the config, or else the one of the parameters' origin.

    Args:
        config: as `default_config`.
        workdir: of the run; if it has one already, its normalization is kept.
        pretrained: weights to initialize from, if any.

    Raises:
        ConfigError: if the config has a mean without a std, or the other way round.
    """
    given = config.normalization.to_dict()
    if None not in given.values():
        return Normalization(**given)
    if any(value is not None for value in given.values()):
        raise ConfigError(f"config.normalization={given}; give both, or neither.")
    if (workdir / METADATA).is_file():
        return read_metadata(workdir).normalization
    return IMAGENET if pretrained is None else pretrained.normalization


def training_image_size(
    config: ConfigDict, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Height and width of the images that a training step is given.

    Args:
        config: as `default_config`.
        sizes: of the images of the training set, used where the config leaves the
            size to the data.
    """
    return tuple(config.augment.crop_px or config.data.image_size or sizes[0])


def model_kwargs(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `create_model`."""
    section = config.model.to_dict()
    return {"num_classes": num_classes, **section.pop("kwargs"), **section}


def create_loss(config: ConfigDict, class_weights: np.ndarray | None) -> Callable:
    """The loss function.

    Args:
        config: as `default_config`.
        class_weights: from `class_weights`.
    """
    section = config.loss.to_dict()
    del section["class_weights"], section["logits_dtype"]
    chunks = section.pop("chunks")
    loss_fn = partial(cross_entropy, class_weights=class_weights, **section)
    return by_columns(loss_fn, chunks)


def class_weights(config: ConfigDict, source: data.Source) -> np.ndarray | None:
    """Weights of the classes, float32 [K], of the training set where they need it."""
    name = config.loss.class_weights
    presets, classes = data.balance.PRESETS, source.info.num_classes
    if name == "none":
        return None
    if name == "median_frequency":
        counts = data.pixel_counts(source)
        return data.balance.median_frequency(*counts).astype(np.float32)
    if name not in presets:
        raise ValueError(
            f"loss.class_weights={name!r} is unknown; take one of none, "
            f"median_frequency, {', '.join(presets)}."
        )
    if len(presets[name]) != classes:
        raise ValueError(
            f"loss.class_weights={name!r} has {len(presets[name])} weights, and "
            f"{source.info.name} has {classes} classes; take median_frequency."
        )
    return np.asarray(presets[name], np.float32)
