"""The training run: from a config to an evaluated checkpoint that can be resumed."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg import data
from jaxseg.checkpoints.known_data import remember_data
from jaxseg.checkpoints.lock import exclusive_workdir
from jaxseg.checkpoints.manager import (
    CheckpointManager,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from jaxseg.checkpoints.run import (
    METADATA,
    PretrainedWeights,
    find_step,
    read_metadata,
    write_metadata,
)
from jaxseg.inference.evaluator import EvaluationStopped, Evaluator
from jaxseg.inference.scorers import network
from jaxseg.metadata import RunMetadata
from jaxseg.metrics import format_table
from jaxseg.parallel import distributed
from jaxseg.parallel.mesh import create_parallel
from jaxseg.training.callbacks import Callback, Callbacks, EarlyStopping, Event
from jaxseg.training.config import (
    Config,
    check_config,
    class_weights,
    config_changes,
    create_loss,
    dataset_kwargs,
    find_normalization,
    flatten_config,
    model_kwargs,
    source_kwargs,
    split_stages,
    training_image_size,
)
from jaxseg.training.errors import (
    NonFiniteLossError,
    checkpoint_advice,
    config_section,
    initialization_advice,
    memory_advice,
)
from jaxseg.training.interrupt import Interrupted, StopSignal
from jaxseg.training.metric_writer import MetricWriter
from jaxseg.training.setup import TrainingSetup
from jaxseg.training.step import TrainState
from jaxseg.training.trackers import find_trackers
from jaxseg.training.validation import Validation
from jaxseg.utils.classes import check_trainable, first_difference
from jaxseg.weights.mapping import summary

IN_FLIGHT = 2
"""Steps dispatched ahead: enough to keep the device busy, few enough to stop soon."""


def run(
    config: Config, workdir: str, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Trains, evaluates and saves; if the workdir has a checkpoint, resumes exactly.

    Args:
        config: as `default_config`.
        workdir: folder for checkpoints, metrics and images; created if needed. With
            `config.stages`, each stage has a folder in it and starts from the stage
            before.
        callbacks: called after steps, evaluations and saves. Each stage starts with
            the state that they have now.

    Returns:
        The last evaluation, as `Confusion.compute` returns it.

    Raises:
        ValueError: if the config, the data or the workdir cannot be used.
        NonFiniteLossError: if the loss or its gradient is infinite or NaN.
        Interrupted: if any process received SIGTERM or SIGINT; a checkpoint was saved.
        OutOfMemoryError: if the memory of the host or of a device does not suffice.
        WorkdirInUseError: if another run uses the workdir.
        OSError: if a file cannot be written; earlier checkpoints are kept.
        ConnectionError: if another process has ended.
    """
    with distributed.leave_on_error(), memory_advice():
        distributed.check_same(flatten_config(config, Path(workdir)))
        # All stages are set up before the first one runs, so that an error in the last
        # one appears now.
        runs: list[_Run] = []
        for stage, folder in split_stages(config, Path(workdir)):
            if runs:
                normalization = runs[-1].metadata.normalization
                stage.normalization.update(asdict(normalization))
            runs.append(_Run(stage, folder, callbacks))
        with ExitStack() as stack:
            stop = stack.enter_context(StopSignal())
            if len(runs) > 1:  # each run locks its own folder
                stack.enter_context(exclusive_workdir(Path(workdir)))
            for earlier in runs[:-1]:
                earlier.run(stop)
                # A signal that came after the last step of the stage.
                if signum := distributed.MaxAcrossProcesses(lag=0)(stop.signum or 0):
                    raise Interrupted(signum, earlier.done)
            return runs[-1].run(stop)


class _Run:
    """A run of one stage.

    All processes do the same, but only the first writes files and prints.
    """

    def __init__(
        self, config: Config, workdir: Path, callbacks: Sequence[Callback] = ()
    ):
        self.config, self.workdir = config, workdir
        self.done = 0
        self.evaluation_due = False  # a signal stopped the evaluation of this step
        self.writes = jax.process_index() == 0
        check_config(config)
        with config_section("trackers"):
            self.trackers = find_trackers(config.trackers)
        if patience := config.train.early_stopping_patience:
            callbacks = (*callbacks, EarlyStopping(patience))
        self.callbacks = Callbacks(callbacks)
        with config_section("parallel"):
            self.parallel = create_parallel(**config.parallel)
        for section in ("train", "eval"):
            with config_section(section):
                self.parallel.check_batch(config[section].batch_size)

        dataset = dataset_kwargs(config)
        with config_section("data"):
            self.train_source, self.val_source = (
                data.create_source(split=split, **source_kwargs(config))
                for split in (config.data.train_split, config.data.val_split)
            )
        distributed.check_same(
            {
                "training images": len(self.train_source),
                "validation images": len(self.val_source),
            }
        )
        self.info = self.train_source.info
        with config_section("data"):
            check_trainable(self.info.class_names)
        self.image_size = config.data.image_size and tuple(config.data.image_size)
        self.batches = self._train_batches()

        self.pretrained = None
        if config.init_from:
            model = model_kwargs(config, self.info.num_classes)
            with config_section("init_head"):
                self.pretrained = PretrainedWeights(
                    config.init_from, model, config.init_head, self.info.class_names
                )
        normalization = find_normalization(config, workdir, self.pretrained)
        height, width = training_image_size(config) or self.train_source.sizes[0]
        self.setup = TrainingSetup(
            config,
            self.parallel,
            num_classes=self.info.num_classes,
            image_shape=(height, width, self.info.channels),
            normalization=normalization,
            loss_fn=create_loss(config, class_weights(config, self.train_source)),
        )
        evaluator = Evaluator(
            network(self.setup.model, normalization),
            num_classes=self.info.num_classes,
            parallel=self.parallel,
            batch_size=config.eval.batch_size,
            image_size=self.image_size,
        )
        self.validation = Validation(
            evaluator,
            self.val_source,
            absent=config.eval.absent,
            overlays=config.eval.overlays if self.writes else 0,
            processes=self.parallel.process_shard[1],
            folder=workdir / "overlays",
        )
        self.metadata = RunMetadata(
            model=self.setup.model_kwargs,
            class_names=self.info.class_names,
            palette=self.info.palette,
            channels=self.info.channels,
            normalization=normalization,
            image_size=self.image_size,
            data=dataset,
            train_split=config.data.train_split,
            val_split=config.data.val_split,
            eval_batch_size=config.eval.batch_size,
            absent=config.eval.absent,
            config=config.to_dict(),
        )

    def run(self, stop: StopSignal) -> dict[str, Any]:
        """See `run`; checks for a signal to stop after each step."""
        distributed.check_shared(self.workdir.absolute())
        with exclusive_workdir(self.workdir) as check_workdir:
            return self._run(stop, check_workdir)

    def _run(
        self, stop: StopSignal, check_workdir: Callable[[], None]
    ) -> dict[str, Any]:
        config, steps = self.config.train, self.config.train.steps
        checkpoints = CheckpointManager(self.workdir)
        largest = distributed.MaxAcrossProcesses(lag=IN_FLIGHT)
        with checkpoints:
            state = self._restore(checkpoints)
            start = self.done = int(state.step)
            description = self._start_message(state, start)
            # Only now: the workdir of another model must stay as it is.
            if self.writes:
                write_metadata(self.workdir, self.metadata)
                remember_data(self.metadata)
            with MetricWriter(
                self.workdir,
                start,
                steps,
                self.trackers,
                silent=not self.writes,
                evaluates=self.evaluation_due,
            ) as writer:
                writer.config(flatten_config(self.config, self.workdir))
                writer.print(description)
                pending: deque = deque()  # steps whose metrics are still to be checked
                result, evaluated = {}, None
                if self.evaluation_due:
                    state, result = self._evaluate(writer, state, stop)
                    evaluated = self.done
                    self._call("on_evaluation", state, result)
                    position = self._position()
                    checkpoints.replace(self.done, state, position, result["miou"])
                while self.done < steps and self.callbacks.stop_reason is None:
                    batch = self.parallel.place(next(self.batches))
                    state, metrics = self.setup.train_step(state, batch)
                    self.done += 1
                    pending.append((self.done, metrics))
                    if len(pending) > IN_FLIGHT:
                        pending[-1 - IN_FLIGHT][1]["loss"].block_until_ready()
                    self._call("on_step", state, metrics)

                    last = self._is_over()
                    # The same in all processes at the same step, so that no step is
                    # undone.
                    signum = largest(stop.signum or 0)
                    evaluates = last or _due(self.done, config.eval_every_steps)
                    saves = (
                        evaluates or signum or _due(self.done, config.save_every_steps)
                    )
                    if saves or _due(self.done, config.log_every_steps):
                        self._log(writer, pending)
                    miou = None
                    if evaluates and not signum:
                        try:
                            state, result = self._evaluate(writer, state, stop)
                        except Interrupted as interrupted:
                            signum = interrupted.signum
                        else:
                            evaluated, miou = self.done, result["miou"]
                            self._call("on_evaluation", state, result)
                            writer.restart_clock()
                    if saves:
                        check_workdir()
                        self.evaluation_due = evaluates and miou is None
                        checkpoints.save(self.done, state, self._position(), miou)
                        self._call("on_save", state, {})
                    if signum and not (self._is_over() and evaluated == self.done):
                        raise Interrupted(signum, self.done)
                if start >= steps:
                    writer.print("training is complete; to continue, raise train.steps")
                elif self.done < steps:
                    reason = self.callbacks.stop_reason
                    writer.print(f"stopped early after step {self.done}: {reason}")
                if evaluated != self.done:
                    _, result = self._evaluate(writer, state, stop, record=False)
                checkpoints.wait()
                if self.writes:
                    writer.print(self._summary(result))
        return result

    def _is_over(self) -> bool:
        finished = self.done >= self.config.train.steps
        return finished or self.callbacks.stop_reason is not None

    def _call(self, method: str, state: TrainState, metrics: dict[str, Any]) -> None:
        """Calls a method of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, method)(Event(self.done, state, metrics))

    def _position(self) -> dict[str, Any]:
        """What a checkpoint holds besides the arrays of the state."""
        position: dict[str, Any] = dict(self.batches.state())
        if callbacks := self.callbacks.state_dict():
            position["callbacks"] = callbacks
        if self.evaluation_due:
            position["evaluation_due"] = True
        return position

    def _train_batches(self) -> data.TrainBatches:
        index, count = self.parallel.process_shard
        return data.train_batches(
            self.train_source,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            augment=self.config.augment.to_dict(),
            image_size=self.image_size,
            process_index=index,
            process_count=count,
            num_threads=self.config.data.num_threads,
        )

    def _restore(self, checkpoints: CheckpointManager) -> TrainState:
        """The state to continue from; batches and callbacks are set accordingly."""
        with checkpoint_advice(self.workdir):
            found = checkpoints.restore_latest(
                self.setup.state,
                batch_size=self.config.train.batch_size,
                **self.config.checkpoint,
            )
            if found is not None:
                self._check_class_names()
        if found is not None:
            state, position = found
            try:
                self.callbacks.load_state_dict(position.pop("callbacks", {}))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise CorruptCheckpointError(
                    f"The checkpoint of step {int(state.step)} in {self.workdir} is "
                    f"damaged: state of the callbacks: {error!r:.200}."
                ) from error
            self.evaluation_due = position.pop("evaluation_due", False)
            self.batches.restore(position)
            return state
        self.callbacks.load_state_dict({})
        state = self.setup.init(key=jax.random.key(self.config.seed))
        return state if self.pretrained is None else self._initialized(state)

    def _check_class_names(self) -> None:
        """Raises an error if the run was started with other classes."""
        if not (self.workdir / METADATA).exists():
            return
        before = read_metadata(self.workdir).class_names
        if difference := first_difference(before, self.info.class_names):
            raise IncompatibleCheckpointError(
                f"{self.workdir} was trained for other classes than those of the data: "
                f"{difference}.",
                "classes",
            )

    def _initialized(self, state: TrainState) -> TrainState:
        """The state before the first step, with pretrained weights."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        assert self.pretrained is not None
        with initialization_advice():
            variables, missing, unused = self.pretrained.initialize(
                variables, self.metadata.normalization
            )
        self.pretrained = None  # frees its arrays
        if self.writes:
            print(
                f"initialized from {self.config.init_from}; not found there: "
                f"{summary(missing) or 'nothing'}; not used: "
                f"{summary(unused) or 'nothing'}",
                flush=True,
            )
        return state.replace(**variables)

    def _log(self, writer: MetricWriter, pending: deque) -> None:
        """Checks all steps since the last line, and records their mean losses.

        Raises:
            NonFiniteLossError: for the first step that is not finite.
        """
        steps = [step for step, _ in pending]
        metrics = jax.device_get([metrics for _, metrics in pending])
        pending.clear()
        for step, values in zip(steps, metrics):
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if bad:
                shown = ", ".join(f"{k} {float(v):.4g}" for k, v in values.items())
                cause = "loss" if "loss" in bad else "gradient of a finite loss"
                raise NonFiniteLossError(
                    f"The {cause} is not finite at step {step} ({shown}, learning rate "
                    f"{self._learning_rate(step):.3g}). Lower "
                    "schedule.learning_rate, add schedule.warmup_steps or set "
                    "optimizer.clip_norm. The last good checkpoint is kept: run the "
                    "same command again to resume from it, or use a new workdir to "
                    "start over."
                )
        writer.train(
            steps[-1],
            self.config.train.batch_size,
            **{
                name: float(np.mean([values[name] for values in metrics]))
                for name in metrics[-1]
                if name.startswith("loss")
            },
            grad_norm=float(metrics[-1]["grad_norm"]),
            learning_rate=self._learning_rate(steps[-1]),
        )

    def _learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        updates = (step - 1) // self.config.optimizer.accumulate_steps
        return float(np.asarray(self.setup.schedule(updates)))

    def _evaluate(
        self,
        writer: MetricWriter,
        state: TrainState,
        stop: StopSignal,
        record: bool = True,
    ) -> tuple[TrainState, dict[str, Any]]:
        """Evaluates on the validation split.

        Returns:
            The state with the statistics that it was evaluated with; the results.

        Raises:
            Interrupted: after a signal; nothing is recorded.
        """
        largest = distributed.MaxAcrossProcesses(lag=IN_FLIGHT)

        def signum() -> int:
            return largest(stop.signum or 0)

        try:
            if self.config.eval.recompute_batch_stats and record:
                writer.print(
                    f"step {self.done}: recomputing BatchNorm statistics over the "
                    "training set"
                )
                statistics = self._training_statistics(state, signum)
                state = state.replace(batch_stats=statistics)
            result = self.validation(
                state.variables, writer, self.done, record=record, signum=signum
            )
        except EvaluationStopped as stopped:
            raise Interrupted(stopped.signum, self.done) from None
        self.evaluation_due = False
        return state, result

    def _training_statistics(self, state: TrainState, signum: Callable[[], int]) -> Any:
        """BatchNorm statistics averaged over one epoch of training batches."""
        count = math.ceil(len(self.train_source) / self.config.train.batch_size)
        mean = None
        for k, batch in zip(range(1, count + 1), self._train_batches()):
            if stopped := signum():
                raise EvaluationStopped(stopped)
            stats = self.setup.batch_statistics(state, self.parallel.place(batch))
            # In this form the mean of equal numbers is that number, so that frozen
            # statistics do not change.
            mean = (
                stats
                if mean is None
                else jax.tree.map(lambda m, x, k=k: m + (x - m) / k, mean, stats)
            )
        return mean

    def _start_message(self, state: TrainState, start: int) -> str:
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        config, processes = self.config, jax.process_count()
        of = f" of {processes} processes" if processes > 1 else ""
        lines = [
            f"{config.model.name}, {parameters:,} parameters, on "
            f"{self.parallel.mesh.size} {jax.devices()[0].device_kind} device(s){of}; "
            f"{self.info.name}: {len(self.train_source)} training and "
            f"{len(self.val_source)} validation images, {self.info.num_classes} classes"
        ]
        if start:
            lines.append(f"resuming after step {start} of {config.train.steps}")
            changes = config_changes(config, self.workdir)
            if changes:
                lines.append("changes to the config since the last start:")
                lines += [f"  {change}" for change in changes]
        elif (self.workdir / METADATA).is_file():
            lines.append("the workdir has no complete checkpoint: starting over")
        return "\n".join(lines)

    def _summary(self, result: dict[str, Any]) -> str:
        best = find_step(self.workdir, "best")
        lines = [
            "",
            f"{self.config.data.val_split}, after the last step",
            format_table(result),
            "",
            f"best checkpoint: step {best}, in {self.workdir}/checkpoints",
            f"metrics: {self.workdir}/metrics.jsonl",
        ]
        if self.batches.skipped:
            lines.append(
                f"damaged records: {self.batches.skipped} samples were replaced by others"
            )
        for name, folder in (("TensorBoard", "tensorboard"), ("images", "overlays")):
            if (self.workdir / folder).is_dir():
                lines.append(f"{name}: {self.workdir}/{folder}")
        return "\n".join(lines)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
