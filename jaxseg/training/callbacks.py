"""Callbacks: a user's own code after a step, an evaluation and a save of a run."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax

from jaxseg.training.step import TrainState


@dataclass(frozen=True)
class Event:
    """What a callback sees; changing it does not change the run.

    Attributes:
        step: number of steps taken.
        state: after the step. The next step reuses the memory of its arrays: copy
            those that you keep.
        metrics: after a step, `loss` and `grad_norm` as scalars on the device, whose
            values are not known until the device has computed them: reading them stops
            the next steps from being dispatched. After an evaluation, what
            `Confusion.compute` returns. Empty after a save.
    """

    step: int
    state: TrainState
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Copies the containers, which can be changed, but not the arrays."""
        state, metrics = jax.tree.map(lambda leaf: leaf, (self.state, self.metrics))
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "metrics", MappingProxyType(metrics))


class Callback:
    """Base class of callbacks, whose methods do nothing.

    Of several processes each calls its own callbacks, with the same results of
    evaluations.

    Attributes:
        stop_reason: None; set it to a text to end the run. After `on_step` the run
            still evaluates and saves that step. All processes must set it at the same
            step. A run that ends is not trained further by starting it again if
            `load_state_dict` sets the reason again.
    """

    stop_reason: str | None = None

    def on_step(self, event: Event) -> None:
        """Called after every training step."""

    def on_evaluation(self, event: Event) -> None:
        """Called after every evaluation on the validation split."""

    def on_save(self, event: Event) -> None:
        """Called after every save; the files may still be being written."""

    def state_dict(self) -> dict[str, Any]:
        """Returns JSON values to save in checkpoints, so that resuming is exact."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned when the checkpoint was saved."""


class EarlyStopping(Callback):
    """Stops a run when evaluations no longer improve.

    An evaluation improves if its metric is more than `min_delta` above the best one so
    far; NaN never does.
    """

    def __init__(self, patience: int, metric: str = "miou", min_delta: float = 0.0):
        """Sets what counts as an improvement.

        Args:
            patience: evaluations in a row without an improvement after which the run
                stops, at least 1.
            metric: key of the results of `Confusion.compute`, such as "miou" or
                "pixel_accuracy".
            min_delta: least improvement, at least 0.

        Raises:
            ValueError: if a number is out of range.
        """
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"patience={patience} and min_delta={min_delta}; they must be at least "
                "1 and 0."
            )
        self.patience, self.metric, self.min_delta = patience, metric, min_delta
        self._best: float | None = None
        self._best_step = self._evaluations = 0

    def on_evaluation(self, event: Event) -> None:
        """Compares an evaluation with the best one so far.

        Raises:
            ValueError: if the results do not have the metric.
        """
        value = event.metrics.get(self.metric)
        if not isinstance(value, float):
            known = [k for k, v in event.metrics.items() if isinstance(v, float)]
            raise ValueError(
                f"Evaluations have no metric {self.metric!r}. Known: "
                f"{', '.join(known)}."
            )
        is_number = value == value
        if is_number and (self._best is None or value > self._best + self.min_delta):
            self._best, self._best_step, self._evaluations = value, event.step, 0
        else:
            self._evaluations += 1
        self._decide()

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, its step, and the evaluations since."""
        return {
            "best": self._best,
            "best_step": self._best_step,
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the best value, its step, and the evaluations since."""
        self._best = state["best"]
        self._best_step = state["best_step"]
        self._evaluations = state["evaluations"]
        self._decide()

    def _decide(self) -> None:
        self.stop_reason = None
        if self._evaluations >= self.patience:
            self.stop_reason = (
                f"no better {self.metric} in {self._evaluations} evaluations since "
                f"step {self._best_step}"
            )


class Callbacks:
    """The callbacks of one run, called in order."""

    def __init__(self, callbacks: Sequence[Callback]):
        """Remembers their states, for `reset`.

        Raises:
            ValueError: if one is not a `Callback`, or its state is not JSON.
        """
        self._callbacks: dict[str, Callback] = {}
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise ValueError(
                    f"{callback!r} is not a callback: derive its class from "
                    "jaxseg.training.callbacks.Callback and pass an instance."
                )
            # By class, so that adding another callback does not lose a state.
            kind = type(callback).__qualname__
            same = sum(type(other) is type(callback) for other in self)
            self._callbacks[f"{kind}_{same + 1}" if same else kind] = callback
        self._initial = self.state_dict()

    def __iter__(self) -> Iterator[Callback]:
        """In the order that they are called."""
        return iter(self._callbacks.values())

    def __len__(self) -> int:
        """Number of callbacks."""
        return len(self._callbacks)

    @property
    def stop_reason(self) -> str | None:
        """Why the run should end, or None."""
        return next((c.stop_reason for c in self if c.stop_reason is not None), None)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """States by the names of the callbacks, without empty ones.

        Raises:
            ValueError: if one is not JSON.
        """
        states = {name: c.state_dict() for name, c in self._callbacks.items()}
        for name, state in states.items():
            try:
                json.dumps(state)
            except TypeError as error:
                raise ValueError(
                    f"The state_dict of the callback {name} must hold JSON values: "
                    f"{error}."
                ) from error
        return copy.deepcopy({name: state for name, state in states.items() if state})

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restores states; a callback without one gets that of the start."""
        for name, callback in self._callbacks.items():
            callback.stop_reason = None
            state = states.get(name, self._initial.get(name))
            if state is not None:
                callback.load_state_dict(copy.deepcopy(state))
