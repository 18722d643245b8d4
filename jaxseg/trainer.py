"""The training run: from a config to an evaluated, resumable checkpoint."""

import math
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import checkpoint, cluster, data, settings, visualize
from jaxseg.evaluator import Evaluator
from jaxseg.inference import network
from jaxseg.interrupt import Interrupted, StopSignal
from jaxseg.logbook import Logbook
from jaxseg.metrics import Confusion, format_table
from jaxseg.models import create_model
from jaxseg.program import Program
from jaxseg.sharding import create_parallel
from jaxseg.steps import Normalization, TrainState
from jaxseg.weights.mapping import summary
from jaxseg.workdir import METADATA, find_step, start, write_metadata

IN_FLIGHT = 2
"""Steps dispatched ahead of the device: enough to keep it busy, few enough to stop."""


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is infinite or NaN."""


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, evaluates and saves; called again, goes on exactly where it stopped.

    Args:
        config: as `configs/default.py`.
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
    with cluster.leave_on_error():
        cluster.check_same(settings.flat(config, Path(workdir)))
        # All are built before the first one runs: what is wrong with the last is found
        # now.
        runs: list[_Run] = []
        for stage, folder in settings.stages(config, Path(workdir)):
            if runs:
                stage.normalization = runs[-1].metadata["normalization"]
            runs.append(_Run(stage, folder))
        with StopSignal() as stop:
            for earlier in runs[:-1]:
                earlier.run(stop)
                # One that came so late that the stage has ended.
                if signum := cluster.Largest(lag=0)(stop.signum or 0):
                    raise Interrupted(signum, earlier.config.train.steps)
            return runs[-1].run(stop)


class _Run:
    """What the phases of a run share.

    All processes do the same, but only the first writes and speaks.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.writes = jax.process_index() == 0
        settings.check(config)
        self.parallel = create_parallel(**config.parallel)
        self.parallel.check_batch(config.train.batch_size, "train.batch_size")
        self.parallel.check_batch(config.eval.batch_size, "eval.batch_size")

        dataset = settings.dataset(config)
        self.train_source = data.create_source(split=config.data.train_split, **dataset)
        self.val_source = data.create_source(split=config.data.val_split, **dataset)
        cluster.check_same(
            {
                "training images": len(self.train_source),
                "validation images": len(self.val_source),
            }
        )
        self.info = self.train_source.info
        self.image_size = config.data.image_size and tuple(config.data.image_size)
        self.batches = self._train_batches()

        model_args = settings.model(config, self.info.num_classes)
        normalization = settings.normalization(config, workdir, model_args)
        shape = config.augment.crop_px or self.image_size or self.train_source.sizes[0]
        self.program = Program(
            config,
            self.parallel,
            num_classes=self.info.num_classes,
            image_shape=(*shape, self.info.channels),
            normalization=normalization,
            loss_fn=settings.loss(
                config, settings.class_weights(config, self.train_source)
            ),
        )
        self.evaluator = Evaluator(
            network(create_model(**model_args), Normalization(**normalization)),
            num_classes=self.info.num_classes,
            parallel=self.parallel,
            batch_size=config.eval.batch_size,
            image_size=self.image_size,
        )
        # Whatever is wrong is found here, before the workdir is opened.
        Confusion.zeros(self.info.num_classes).compute(
            self.info.class_names, absent=config.eval.absent
        )
        self.metadata = {
            "model": self.program.model,
            "class_names": self.info.class_names,
            "palette": self.info.palette,
            "channels": self.info.channels,
            "normalization": normalization,
            "image_size": self.image_size,
            "data": dataset,
            "train_split": config.data.train_split,
            "val_split": config.data.val_split,
            "eval": config.eval.to_dict(),
            "config": config.to_dict(),
        }

    def run(self, stop: StopSignal) -> dict[str, Any]:
        """See `run`; between two steps it looks whether there is a signal to stop."""
        config, steps = self.config.train, self.config.train.steps
        cluster.check_shared(self.workdir.absolute())
        checkpoints = checkpoint.Checkpoints(self.workdir)
        largest = cluster.Largest(lag=IN_FLIGHT)
        with checkpoints:
            state = self._restore(checkpoints)
            begun = done = int(state.step)
            description = self._describe(state, begun)
            # Only now: a workdir of another model must stay what it is.
            if self.writes:
                write_metadata(self.workdir, self.metadata)
            logbook = Logbook(self.workdir, begun, steps, silent=not self.writes)
            with logbook:
                logbook.say(description)
                pending: deque = deque()  # metrics of steps that were not looked at
                result = None
                while done < steps:
                    batch = self.parallel.place(next(self.batches))
                    state, metrics = self.program.train_step(state, batch)
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
                        self._log(logbook, pending)
                    miou = None
                    if evaluates:
                        state, result = self._evaluate(logbook, state, done)
                        miou = result["miou"]
                        logbook.restart_clock()
                    if saves:
                        checkpoints.save(done, state, self.batches.state(), miou)
                    if signum and not last:
                        raise Interrupted(signum, done)
                if result is None:
                    logbook.say("nothing is left to do; train.steps says how far")
                    _, result = self._evaluate(logbook, state, done, record=False)
                checkpoints.wait()
                if self.writes:
                    logbook.say(self._summary(result))
        return result

    def _train_batches(self):
        index, count = self.parallel.share
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
        found = checkpoints.restore_latest(
            self.program.state,
            batch_size=self.config.train.batch_size,
            **self.config.checkpoint,
        )
        if found is not None:
            state, position = found
            self.batches.restore(position)
            return state
        state = self.program.init(key=jax.random.key(self.config.seed))
        if self.config.init_from:
            state, missing, unused = start(
                self.config.init_from,
                state,
                model=self.metadata["model"],
                normalization=self.metadata["normalization"],
                head=self.config.init_head,
            )
            if self.writes:
                print(
                    f"started from {self.config.init_from}; not found there: "
                    f"{summary(missing) or 'nothing'}; not used: "
                    f"{summary(unused) or 'nothing'}",
                    flush=True,
                )
        return state

    def _log(self, logbook, pending):
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
        logbook.train(
            steps[-1],
            self.config.train.batch_size,
            loss=float(np.mean([values["loss"] for values in metrics])),
            grad_norm=float(metrics[-1]["grad_norm"]),
            learning_rate=self._learning_rate(steps[-1]),
        )

    def _learning_rate(self, step):
        """The learning rate that step number `step`, from 1, was taken with."""
        updates = (step - 1) // self.config.optimizer.accumulate_steps
        return float(self.program.schedule(updates))

    def _evaluate(self, logbook, state: TrainState, step: int, record: bool = True):
        """Scores the validation set; returns the state, its statistics as scored."""
        config = self.config.eval
        if config.recompute_batch_stats and record:
            logbook.say(f"step {step}: BatchNorm statistics over the training set")
            state = state.replace(batch_stats=self._training_statistics(state))
        predictions: dict[int, np.ndarray] = {}
        # The first process has only its share of the first records.
        within = config.overlays * self.parallel.share[1] if self.writes else 0

        def watch(index, prediction):
            if index < within:
                predictions[index] = prediction

        confusion, _ = self.evaluator(
            state.variables, self.val_source, watch=watch if within else None
        )
        result = confusion.compute(self.info.class_names, absent=config.absent)
        if record:
            names = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "iou")
            logbook.write(step, {f"val_{name}": result[name] for name in names})
            logbook.say(
                f"step {step}: validation mIoU {result['miou']:.4f}, pixel accuracy "
                f"{result['pixel_accuracy']:.4f}"
            )
            if predictions:
                shown = sorted(predictions.items())[: config.overlays]
                self._paint(logbook, step, dict(shown))
        return state, result

    def _training_statistics(self, state: TrainState):
        """BatchNorm statistics averaged over one epoch of training batches."""
        count = math.ceil(len(self.train_source) / self.config.train.batch_size)
        mean = None
        for k, batch in zip(range(1, count + 1), self._train_batches()):
            stats = self.program.batch_statistics(state, self.parallel.place(batch))
            # So written, the mean of equal numbers is that number: frozen ones stay.
            mean = (
                stats
                if mean is None
                else jax.tree.map(lambda m, x, k=k: m + (x - m) / k, mean, stats)
            )
        return mean

    def _paint(self, logbook, step, predictions):
        records = [self.val_source[index] for index in predictions]
        panel = visualize.validation_panel(
            [record["image"] for record in records],
            [record["label"] for record in records],
            list(predictions.values()),
            self.info.palette,
            self.info.class_names,
        )
        logbook.picture(step, "validation", panel)
        folder = self.workdir / "overlays"
        folder.mkdir(exist_ok=True)
        visualize.write_png(folder / f"step_{step:07}.png", panel)

    def _describe(self, state: TrainState, begun: int) -> str:
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
            changes = settings.changes(config, self.workdir)
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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
