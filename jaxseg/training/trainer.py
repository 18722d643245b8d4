"""The training run: from a config to an evaluated checkpoint that can be resumed."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import data
from jaxseg.checkpoints.manager import (
    CheckpointManager,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from jaxseg.checkpoints.run import (
    METADATA,
    NormalizationMismatchError,
    PretrainedWeights,
    find_step,
    write_metadata,
)
from jaxseg.inference.evaluator import Evaluator
from jaxseg.inference.scorers import network
from jaxseg.metadata import RunMetadata
from jaxseg.metrics import format_table
from jaxseg.parallel import distributed
from jaxseg.parallel.mesh import create_parallel
from jaxseg.training.config import (
    ConfigError,
    check_config,
    class_weights,
    config_changes,
    config_section,
    create_loss,
    dataset_kwargs,
    find_normalization,
    flatten_config,
    model_kwargs,
    split_stages,
    training_image_size,
)
from jaxseg.training.interrupt import Interrupted, StopSignal
from jaxseg.training.metric_writer import MetricWriter
from jaxseg.training.setup import TrainingSetup
from jaxseg.training.step import TrainState
from jaxseg.visualization import overlays
from jaxseg.weights.mapping import summary

IN_FLIGHT = 2
"""Steps dispatched ahead of the device: enough to keep it busy, few enough to stop."""


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is infinite or NaN."""


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, evaluates and saves; called again, goes on exactly where it stopped.

    Args:
        config: as `default_config`.
        workdir: folder for checkpoints, metrics and pictures; made if need be. With
            `config.stages` each has a folder in it, and starts from the one before.

    Returns:
        The last evaluation, as `Confusion.compute` gives it.

    Raises:
        ValueError: if the config, the data or the workdir cannot be used.
        NonFiniteLossError: if the loss or its gradient is infinite or NaN.
        Interrupted: if SIGTERM or SIGINT came, to any process; the state is saved by
            then.
        ConnectionError: if another process is gone.
    """
    with distributed.leave_on_error():
        distributed.check_same(flatten_config(config, Path(workdir)))
        # All are built before the first one runs: what is wrong with the last is found
        # now.
        runs: list[_Run] = []
        for stage, folder in split_stages(config, Path(workdir)):
            if runs:
                normalization = runs[-1].metadata.normalization
                stage.normalization.update(asdict(normalization))
            runs.append(_Run(stage, folder))
        with StopSignal() as stop:
            for earlier in runs[:-1]:
                earlier.run(stop)
                # One that came so late that the stage has ended.
                if signum := distributed.MaxAcrossProcesses(lag=0)(stop.signum or 0):
                    raise Interrupted(signum, earlier.config.train.steps)
            return runs[-1].run(stop)


class _Run:
    """What the phases of a run share.

    All processes do the same, but only the first writes and speaks.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.writes = jax.process_index() == 0
        check_config(config)
        with config_section("parallel"):
            self.parallel = create_parallel(**config.parallel)
        for section in ("train", "eval"):
            with config_section(section):
                self.parallel.check_batch(config[section].batch_size)

        dataset = dataset_kwargs(config)
        with config_section("data"):
            self.train_source, self.val_source = (
                data.create_source(split=split, **dataset)
                for split in (config.data.train_split, config.data.val_split)
            )
        distributed.check_same(
            {
                "training images": len(self.train_source),
                "validation images": len(self.val_source),
            }
        )
        self.info = self.train_source.info
        self.image_size = config.data.image_size and tuple(config.data.image_size)
        self.batches = self._train_batches()

        self.pretrained = None
        if config.init_from:
            model = model_kwargs(config, self.info.num_classes)
            with config_section("init_head"):
                self.pretrained = PretrainedWeights(
                    config.init_from, model, config.init_head
                )
        normalization = find_normalization(config, workdir, self.pretrained)
        size = training_image_size(config, self.train_source.sizes)
        self.setup = TrainingSetup(
            config,
            self.parallel,
            num_classes=self.info.num_classes,
            image_shape=(*size, self.info.channels),
            normalization=normalization,
            loss_fn=create_loss(config, class_weights(config, self.train_source)),
        )
        self.evaluator = Evaluator(
            network(self.setup.model, normalization),
            num_classes=self.info.num_classes,
            parallel=self.parallel,
            batch_size=config.eval.batch_size,
            image_size=self.image_size,
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
        """See `run`; between two steps it looks whether there is a signal to stop."""
        config, steps = self.config.train, self.config.train.steps
        distributed.check_shared(self.workdir.absolute())
        checkpoints = CheckpointManager(self.workdir)
        largest = distributed.MaxAcrossProcesses(lag=IN_FLIGHT)
        with checkpoints:
            state = self._restore(checkpoints)
            begun = done = int(state.step)
            description = self._start_message(state, begun)
            # Only now: a workdir of another model must stay what it is.
            if self.writes:
                write_metadata(self.workdir, self.metadata)
            writer = MetricWriter(self.workdir, begun, steps, silent=not self.writes)
            with writer:
                writer.say(description)
                pending: deque = deque()  # metrics of steps that were not looked at
                result = None
                while done < steps:
                    batch = self.parallel.place(next(self.batches))
                    state, metrics = self.setup.train_step(state, batch)
                    done += 1
                    pending.append((done, metrics))
                    if len(pending) > IN_FLIGHT:
                        pending[-1 - IN_FLIGHT][1]["loss"].block_until_ready()

                    last = done == steps
                    # The same in all processes, at the same step: no step is undone.
                    signum = largest(stop.signum or 0)
                    evaluates = last or _due(done, config.eval_every_steps)
                    saves = evaluates or signum or _due(done, config.save_every_steps)
                    if saves or _due(done, config.log_every_steps):
                        self._log(writer, pending)
                    miou = None
                    if evaluates:
                        state, result = self._evaluate(writer, state, done)
                        miou = result["miou"]
                        writer.restart_clock()
                    if saves:
                        checkpoints.save(done, state, self.batches.state(), miou)
                    if signum and not last:
                        raise Interrupted(signum, done)
                if result is None:
                    writer.say("nothing is left to do; train.steps says how far")
                    _, result = self._evaluate(writer, state, done, record=False)
                checkpoints.wait()
                if self.writes:
                    writer.say(self._summary(result))
        return result

    def _train_batches(self):
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

    def _restore(self, checkpoints) -> TrainState:
        """The state to go on from, with the batches at their place."""
        with self._checkpoint_advice():
            found = checkpoints.restore_latest(
                self.setup.state,
                batch_size=self.config.train.batch_size,
                **self.config.checkpoint,
            )
        if found is not None:
            state, position = found
            self.batches.restore(position)
            return state
        state = self.setup.init(key=jax.random.key(self.config.seed))
        return state if self.pretrained is None else self._initialized(state)

    def _initialized(self, state: TrainState) -> TrainState:
        """The state before the first step, with pretrained weights."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        try:
            with config_section("init_from"):
                variables, missing, unused = self.pretrained.initialize(
                    variables, self.metadata.normalization
                )
        except ConfigError as error:
            if isinstance(error.__cause__, NormalizationMismatchError):
                raise ConfigError(
                    f"{error} Leave config.normalization out, or set it to the former."
                ) from error
            raise
        self.pretrained = None  # its arrays are not needed again
        if self.writes:
            print(
                f"initialized from {self.config.init_from}; not found there: "
                f"{summary(missing) or 'nothing'}; not used: "
                f"{summary(unused) or 'nothing'}",
                flush=True,
            )
        return state.replace(**variables)

    @contextmanager
    def _checkpoint_advice(self) -> Iterator[None]:
        """Adds the config keys that help to the errors of restoring a checkpoint."""
        fresh = (
            "To start a new run from its parameters, use another workdir and "
            f"--config.init_from={self.workdir}."
        )
        try:
            yield
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(
                f"{error} To resume from the checkpoint before it, or from the start "
                "if there is none, add --config.checkpoint.fallback=True; the damaged "
                "one is kept under another name."
            ) from error
        except IncompatibleCheckpointError as error:
            advice = {
                "weights": fresh,
                "version": fresh,
                "batch_size": "train.batch_size is the global batch size: it need not "
                "change with the number of devices. To resume with another, at the same "
                "image and the same step of the schedule, add "
                "--config.checkpoint.accept_batch_size=True.",
                "leaves": f"{_changed_keys(error.leaves)} differs from when the run "
                "was started; use another workdir, or the config that the run was "
                "started with.",
            }
            error.args = (f"{error} {advice[error.reason]}",)
            raise

    def _log(self, writer, pending):
        """Looks at all steps since the last line; stops at the first that is bad."""
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
                    "optimizer.clip_norm. The last good checkpoint is kept: the same "
                    "command goes on from it, and a new workdir starts afresh."
                )
        writer.train(
            steps[-1],
            self.config.train.batch_size,
            loss=float(np.mean([values["loss"] for values in metrics])),
            grad_norm=float(metrics[-1]["grad_norm"]),
            learning_rate=self._learning_rate(steps[-1]),
        )

    def _learning_rate(self, step):
        """The learning rate that step number `step`, from 1, was taken with."""
        updates = (step - 1) // self.config.optimizer.accumulate_steps
        return float(self.setup.schedule(updates))

    def _evaluate(self, writer, state: TrainState, step: int, record: bool = True):
        """Scores the validation set; returns the state, its statistics as scored."""
        config = self.config.eval
        if config.recompute_batch_stats and record:
            writer.say(f"step {step}: BatchNorm statistics over the training set")
            state = state.replace(batch_stats=self._training_statistics(state))
        predictions: dict[int, np.ndarray] = {}
        # The first process has only its share of the first records.
        within = config.overlays * self.parallel.process_shard[1] if self.writes else 0

        def watch(index, prediction, label):
            del label
            if index < within:
                predictions[index] = prediction

        confusion, _ = self.evaluator(
            state.variables, self.val_source, watch=watch if within else None
        )
        result = confusion.compute(self.info.class_names, absent=config.absent)
        if record:
            names = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "iou")
            writer.write(step, {f"val_{name}": result[name] for name in names})
            writer.say(
                f"step {step}: validation mIoU {result['miou']:.4f}, pixel accuracy "
                f"{result['pixel_accuracy']:.4f}"
            )
            if predictions:
                shown = sorted(predictions.items())[: config.overlays]
                self._write_overlays(writer, step, dict(shown))
        return state, result

    def _training_statistics(self, state: TrainState):
        """BatchNorm statistics averaged over one epoch of training batches."""
        count = math.ceil(len(self.train_source) / self.config.train.batch_size)
        mean = None
        for k, batch in zip(range(1, count + 1), self._train_batches()):
            stats = self.setup.batch_statistics(state, self.parallel.place(batch))
            # So written, the mean of equal numbers is that number: frozen ones stay.
            mean = (
                stats
                if mean is None
                else jax.tree.map(lambda m, x, k=k: m + (x - m) / k, mean, stats)
            )
        return mean

    def _write_overlays(self, writer, step, predictions):
        records = [self.val_source[index] for index in predictions]
        panel = overlays.validation_panel(
            [record["image"] for record in records],
            [record["label"] for record in records],
            list(predictions.values()),
            self.info.palette,
            self.info.class_names,
        )
        writer.picture(step, "validation", panel)
        folder = self.workdir / "overlays"
        folder.mkdir(exist_ok=True)
        overlays.write_png(folder / f"step_{step:07}.png", panel)

    def _start_message(self, state: TrainState, begun: int) -> str:
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        config, processes = self.config, jax.process_count()
        of = f" of {processes} processes" if processes > 1 else ""
        lines = [
            f"{config.model.name}, {parameters:,} parameters, on "
            f"{self.parallel.mesh.size} {jax.devices()[0].device_kind} device(s){of}; "
            f"{self.info.name}: {len(self.train_source)} training and "
            f"{len(self.val_source)} validation images, {self.info.num_classes} classes"
        ]
        if begun:
            lines.append(f"resuming after step {begun} of {config.train.steps}")
            changes = config_changes(config, self.workdir)
            if changes:
                lines.append("since the last start the config has changed")
                lines += [f"  {change}" for change in changes]
        elif (self.workdir / METADATA).is_file():
            lines.append("the workdir has no whole checkpoint: from the start again")
        return "\n".join(lines)

    def _summary(self, result: dict[str, Any]) -> str:
        best = find_step(self.workdir, "best")
        lines = [
            "",
            f"{self.config.data.val_split}, after the last step",
            format_table(result),
            "",
            f"best checkpoint: step {best}, in {self.workdir}/checkpoints",
            f"metrics: {self.workdir}/metrics.jsonl and TensorBoard's in "
            f"{self.workdir}/tensorboard",
        ]
        if self.config.eval.overlays:
            lines.append(f"pictures: {self.workdir}/overlays")
        return "\n".join(lines)


def _changed_keys(leaves: tuple[str, ...]) -> str:
    """Keys of the config that decide which arrays these parts of a state have."""
    keys = {
        "params": "config.model",
        "batch_stats": "config.model",
        "opt_state": "config.optimizer",
        "ema": "config.train.ema_decay",
    }
    parts = {name.partition("/")[0] for name in leaves}
    # The rest of a state has the shapes of its parameters.
    parts = parts & {"params"} or parts
    return " and ".join(sorted({keys[part] for part in parts}))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
