"""What a config means: arguments of the builders that its sections are for."""

import inspect
import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import data
from jaxseg.checkpoints.run import METADATA, PretrainedWeights, read_metadata
from jaxseg.losses import LossFn, apply_loss, by_columns, combine, cross_entropy
from jaxseg.ops.image_normalization import Normalization
from jaxseg.training.default_config import default_config
from jaxseg.training.errors import ConfigError, config_section
from jaxseg.utils import registry
from jaxseg.utils.files import expand_home
from jaxseg.utils.names import suggest_name
from jaxseg.utils.trees import path_name
from jaxseg.weights.mapping import IMAGENET

if TYPE_CHECKING:
    # ml_collections gives no types, and those inferred for a value are too many.
    Config: TypeAlias = Any
else:
    Config = ConfigDict


def split_stages(config: Config, workdir: Path) -> list[tuple[Config, Path]]:
    """Returns the config and the workdir of each stage.

    Without stages these are the given ones.
    """
    if not config.stages:
        return [(config, workdir)]
    found: list[tuple[Config, Path]] = []
    for name, changes in config.stages:
        stage = config.copy_and_resolve_references()
        stage.stages = ()
        if found:
            stage.init_from, stage.init_head = str(found[-1][1]), "keep"
        with stage.unlocked():
            stage.update_from_flattened_dict(changes)
        found.append((stage, workdir / name))
    return found


def flatten_config(config: Config, workdir: Path) -> dict[str, Any]:
    """Everything that a run is started with, by dotted names."""
    start = {"workdir": str(workdir.absolute()), "jax": jax.__version__}
    return start | _flatten(config.to_dict())


def config_changes(config: Config, workdir: Path) -> list[str]:
    """Lists the differences from the config that the workdir was last started with.

    Returns:
        One line for each key, "train.steps: 6 -> 7"; none if the workdir is new.
    """
    before = (workdir / METADATA).is_file() and read_metadata(workdir).config
    if not before:
        return []
    # The stored config went through JSON, which turns tuples into lists. A key that an
    # older version did not have had the effect of today's default.
    defaults, new = (
        _flatten(json.loads(json.dumps(c.to_dict())))
        for c in (default_config(), config)
    )
    old = defaults | _flatten(before)
    lines = {
        name: (old.get(name, "absent"), new.get(name, "absent"))
        for name in sorted(old.keys() | new.keys())
    }
    return [f"{name}: {a} -> {b}" for name, (a, b) in lines.items() if a != b]


def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: not isinstance(x, dict)
    )
    return {path_name(path, "."): leaf for path, leaf in leaves}


def check_config(config: Config) -> None:
    """Checks the values that no builder would check in time.

    Raises:
        ConfigError: if one is out of range; the message names its key.
    """
    for key, smallest in (
        ("train.steps", 1),
        ("train.batch_size", 1),
        ("optimizer.accumulate_steps", 1),
        ("train.log_every_steps", 0),
        ("train.eval_every_steps", 0),
        ("train.save_every_steps", 0),
        ("train.early_stopping_patience", 0),
        ("eval.batch_size", 1),
        ("eval.overlays", 0),
    ):
        section, name = key.split(".")
        value = config[section][name]
        if value < smallest:
            raise ConfigError(f"config.{key}={value}; it must be at least {smallest}.")
    steps, accumulated = config.train.steps, config.optimizer.accumulate_steps
    if steps % accumulated:
        raise ConfigError(
            f"config.train.steps={steps} is not a multiple of "
            f"config.optimizer.accumulate_steps={accumulated}: the last batches would "
            f"have no effect. Use {steps - steps % accumulated or accumulated} steps."
        )
    decay = config.train.ema_decay
    if not 0 <= decay < 1:
        raise ConfigError(
            f"config.train.ema_decay={decay}; it must be at least 0 and below 1, such "
            "as 0.999, where 0 means no average."
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
            f"config.data.image_size={tuple(size)}; give a height and a width in "
            "pixels, such as (176, 240)."
        )


def dataset_kwargs(config: Config) -> dict[str, Any]:
    """Keyword arguments of `data.create_source` that the metadata of a run holds."""
    section = config.data
    return {
        "dataset": section.dataset,
        # Absolute, so that the workdir can be evaluated from any directory.
        "root": section.root and str(expand_home(section.root).resolve()),
        "prepared_dir": section.prepared_dir,
        **section.options.to_dict(),
    }


def source_kwargs(config: Config) -> dict[str, Any]:
    """Keyword arguments of `data.create_source`, without the split."""
    section = config.data
    trust = {"trust_prepared": section.trust_prepared, "on_error": section.on_error}
    return dataset_kwargs(config) | trust


def find_normalization(
    config: Config, workdir: Path, pretrained: PretrainedWeights | None
) -> Normalization:
    """The normalization in the config, or else that of the workdir or the weights.

    Args:
        config: as `default_config`.
        workdir: of the run; if it has a normalization already, that is kept.
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


def training_image_size(config: Config) -> tuple[int, int] | None:
    """Height and width of the images in a training step; None for the data set's own.

    Args:
        config: as `default_config`.
    """
    size = config.augment.crop_px or config.data.image_size
    return None if size is None else tuple(size)


def model_kwargs(config: Config, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `create_model`."""
    section = config.model.to_dict()
    return {"num_classes": num_classes, **section.pop("kwargs"), **section}


LOSS_KEYS = ("class_weights", "denominator", "label_smoothing")
"""Keys of `config.loss` that are passed to the losses with an argument of that name."""

FROM_STEP = ("axis_name", "pixel_weights")
"""Arguments of losses that are arrays or names of the step, and not in a config."""


def create_loss(config: Config, class_weights: np.ndarray | None) -> LossFn:
    """The loss function.

    Args:
        config: as `default_config`.
        class_weights: from `class_weights`.

    Returns:
        The loss named in the config with its arguments bound, or the combination of its
        terms. Their own ValueErrors, which appear when a step is traced, become
        ConfigErrors.

    Raises:
        ConfigError: if a name is unknown, or a loss does not accept an argument.
    """
    section = config.loss
    if not section.terms:
        kwargs = section.kwargs.to_dict()
        loss_fn = _bind_loss(config, "loss", section.name, kwargs, class_weights)
        _check_used(section, class_weights, [section.name])
        return loss_fn
    if section.name != "cross_entropy" or section.kwargs:
        raise ConfigError(
            "config.loss.terms replaces config.loss.name and config.loss.kwargs; leave "
            "those at their defaults."
        )
    terms: dict[str, tuple[float, LossFn]] = {}
    for index, term in enumerate(section.terms):
        key = f"loss.terms[{index}]"
        name, weight, kwargs = _read_term(key, term)
        loss_fn = _bind_loss(config, key, name, kwargs, class_weights)
        count = sum(other[0] == name for other in section.terms[:index])
        terms[name if not count else f"{name}_{count + 1}"] = (weight, loss_fn)
    _check_used(section, class_weights, [term[0] for term in section.terms])
    return combine(terms)


def _read_term(key: str, term: Any) -> tuple[str, float, dict[str, Any]]:
    """Name, weight and keyword arguments of a term of `config.loss.terms`."""
    if isinstance(term, (tuple, list)) and len(term) == 3:
        name, weight, kwargs = term
        if (
            isinstance(name, str)
            and isinstance(weight, (int, float))
            and not isinstance(weight, bool)
            and math.isfinite(weight)
            and isinstance(kwargs, (dict, ConfigDict))
        ):
            return name, float(weight), dict(kwargs.items())
    raise ConfigError(
        f"config.{key} is {term!r}; give a name, a weight and keyword arguments, such "
        'as ("dice", 0.5, {}).'
    )


def _bind_loss(
    config: Config,
    key: str,
    name: str,
    kwargs: dict[str, Any],
    class_weights: np.ndarray | None,
) -> LossFn:
    """A loss by name with its arguments; its errors name the key of the config."""
    with config_section(key):
        builder = registry.lookup("loss", name)
        kwargs = _loss_kwargs(builder, key, name, kwargs, config.loss, class_weights)
        bound = by_columns(partial(builder, **kwargs), config.loss.chunks)

    def loss(
        logits: jax.Array, label: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        with config_section(key):
            result = apply_loss(bound, logits, label, axis_name)
            if not isinstance(result, tuple) or [
                np.shape(value) for value in result
            ] != [(), ()]:
                raise ValueError(
                    f"{name!r} must return two scalars: the sum of the loss, and the "
                    "number to divide it by."
                )
            return result

    return loss


def _loss_kwargs(
    loss_fn: Any,
    key: str,
    name: str,
    kwargs: dict[str, Any],
    section: Config,
    class_weights: np.ndarray | None,
) -> dict[str, Any]:
    """Keyword arguments for a loss, checked by its signature."""
    accepted = _accepted(loss_fn)
    for argument in kwargs:
        if argument in LOSS_KEYS:
            raise ConfigError(
                f"config.{key}.kwargs has {argument}; set config.loss.{argument}."
            )
        known = tuple(x for x in accepted if x not in (*LOSS_KEYS, *FROM_STEP))
        if argument not in known:
            raise ConfigError(
                f"config.{key}.kwargs: the loss {name!r} has no argument "
                f"{argument!r}{suggest_name(argument, known)}"
            )
    values = {x: section[x] for x in LOSS_KEYS} | {"class_weights": class_weights}
    return kwargs | {x: values[x] for x in LOSS_KEYS if x in accepted}


def _accepted(loss_fn: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(loss_fn).parameters)[2:]


def _check_used(
    section: Config, class_weights: np.ndarray | None, names: list[str]
) -> None:
    """Checks that each key that was set is an argument of one of the losses."""
    accepted = {x for name in names for x in _accepted(registry.lookup("loss", name))}
    defaults = inspect.signature(cross_entropy).parameters
    for key in LOSS_KEYS:
        value = class_weights if key == "class_weights" else section[key]
        if key not in accepted and np.any(value != defaults[key].default):
            losses = " and ".join(repr(name) for name in dict.fromkeys(names))
            raise ConfigError(
                f"config.loss.{key}={section[key]!r}, but the loss {losses} has no "
                f"argument {key!r}; leave it at its default."
            )


def class_weights(config: Config, source: data.Source) -> np.ndarray | None:
    """Weights of the classes, float32 [K], from the training set where needed.

    Raises:
        ConfigError: if the name is unknown, or its weights are for other classes.
    """
    name = config.loss.class_weights
    presets, classes = data.balance.PRESETS, source.info.num_classes
    if name == "none":
        return None
    if name == "median_frequency":
        counts = data.pixel_counts(source)
        return data.balance.median_frequency(*counts).astype(np.float32)
    if name not in presets:
        raise ConfigError(
            f"config.loss.class_weights={name!r} is unknown; use one of none, "
            f"median_frequency, {', '.join(presets)}."
        )
    if len(presets[name]) != classes:
        raise ConfigError(
            f"config.loss.class_weights={name!r} has {len(presets[name])} weights, and "
            f"{source.info.name} has {classes} classes; use median_frequency."
        )
    return np.asarray(presets[name], np.float32)
