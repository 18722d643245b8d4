"""Errors of a run, in terms of its config: the keys that are wrong or that help."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxseg.checkpoints.manager import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from jaxseg.checkpoints.run import (
    ClassNamesMismatchError,
    NormalizationMismatchError,
)


class ConfigError(ValueError):
    """A value in the config cannot be used; the message names its key."""


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is infinite or NaN."""


class OutOfMemoryError(MemoryError):
    """The memory of the host or of a device does not suffice."""


@contextmanager
def memory_advice() -> Iterator[None]:
    """Adds the config keys that help where memory does not suffice.

    Raises:
        OutOfMemoryError: in place of the errors of Python and of JAX.
    """
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(
            f"Not enough memory on the host ({error or 'no further message'}). Use "
            "smaller images (augment.crop_px, data.image_size) or a smaller "
            "train.batch_size or eval.batch_size."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = str(error).partition("\n")[0][:200]
        raise OutOfMemoryError(
            f"Not enough memory on a device ({message}). Use a smaller "
            "train.batch_size (optimizer.accumulate_steps keeps the effective one), "
            "smaller crops (augment.crop_px), model.remat, or split images over devices "
            "(parallel.space). `jaxseg plan` computes the memory in advance."
        ) from error


@contextmanager
def config_section(name: str) -> Iterator[None]:
    """Prefixes the errors of a builder with the section of the config that it is for.

    Raises:
        ConfigError: in place of a ValueError.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{name}: {error}") from error


@contextmanager
def initialization_advice() -> Iterator[None]:
    """Adds the config keys that help to errors of loading pretrained weights.

    Raises:
        ConfigError: in place of a ValueError.
    """
    try:
        with config_section("init_from"):
            yield
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, NormalizationMismatchError):
            advice = "Leave config.normalization out, or set it to the former."
        elif isinstance(cause, ClassNamesMismatchError):
            advice = (
                'Set config.init_head to "new" to train a new head, or describe the same '
                "classes in the same order in the data."
            )
        else:
            raise
        raise ConfigError(f"{error} {advice}") from error


@contextmanager
def checkpoint_advice(workdir: Path) -> Iterator[None]:
    """Adds the config keys that help to errors of restoring a checkpoint.

    Raises:
        CorruptCheckpointError: with the advice.
        IncompatibleCheckpointError: with the advice.
    """
    fresh = (
        "To start a new run from its parameters, use another workdir and "
        f"--config.init_from={workdir}."
    )
    try:
        yield
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(
            f"{error} To resume from the checkpoint before it, or from the start if "
            "there is none, add --config.checkpoint.fallback=True; the damaged "
            "checkpoint is kept under another name."
        ) from error
    except IncompatibleCheckpointError as error:
        advice = {
            "weights": fresh,
            "version": fresh,
            "batch_size": "train.batch_size is the global batch size: it does not have "
            "to change with the number of devices. To resume with another one, at the "
            "same image and the same step of the schedule, add "
            "--config.checkpoint.accept_batch_size=True.",
            "classes": "Name the classes of the data as before, in the same order, or "
            f'use another workdir, --config.init_from={workdir} and init_head="new".',
            "leaves": f"{_changed_keys(error.leaves)} differs from when the run was "
            "started; use another workdir, or the config that the run was started "
            "with.",
        }
        raise IncompatibleCheckpointError(
            f"{error} {advice[error.reason]}", error.reason, error.leaves
        ) from error


def _changed_keys(leaves: tuple[str, ...]) -> str:
    """Keys of the config that decide which arrays a state has, for those given."""
    keys = {
        "params": "config.model",
        "batch_stats": "config.model",
        "opt_state": "config.optimizer",
        "ema": "config.train.ema_decay",
    }
    fields = {name.partition("/")[0] for name in leaves}
    # The other fields have arrays of the parameters' shapes.
    fields = fields & {"params"} or fields
    return " and ".join(sorted({keys[field] for field in fields}))
