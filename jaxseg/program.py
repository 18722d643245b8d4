"""What a config trains: the model, its optimiser, its state and its compiled steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg import settings
from jaxseg.models import create_model
from jaxseg.models.freezing import frozen_layers
from jaxseg.optimizer import create_optimizer, create_schedule
from jaxseg.sharding import REPLICATED, Parallel
from jaxseg.steps import Normalization, batch_statistics, create_state, train_step


class Program:
    """The functions of a run, for the devices that it runs on; none is compiled yet.

    They need no data, and the devices need not be there: with `state` and `batch`,
    which are abstract, `train_step.lower(state, batch).compile()` says ahead of time
    what a step takes.

    Attributes:
        model: keyword arguments of `create_model`.
        schedule: learning rate by number of updates.
        init: called as `(key=...)`, returns the state before the first step.
        train_step: see `steps.train_step`; takes a state, whose memory it reuses, and
            a batch.
        batch_statistics: see `steps.batch_statistics`; takes a state and a batch.
        state: shapes, types and placements of a state.
        batch: likewise of a batch over all devices, but for `pmap`.
    """

    def __init__(
        self,
        config: ConfigDict,
        parallel: Parallel,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalization: dict[str, Any],
        loss_fn: Callable,
    ):
        """Puts the parts together.

        Args:
            config: as `configs/default.py`, and passed by `settings.check`.
            parallel: the devices and the way to use them.
            num_classes: K.
            image_shape: (H, W, C) of a training image.
            normalization: keyword arguments of `steps.Normalization`.
            loss_fn: (logits, label) -> (sum, denominator); see `settings.loss`.

        Raises:
            ValueError: if the config asks for what there is not, or the images cannot
                be split over the devices.
        """
        channels = image_shape[2]
        if any(len(values) not in (1, channels) for values in normalization.values()):
            raise ValueError(
                f"normalization={normalization} is not for images of {channels} "
                "channels; for any number of them set --config.normalization.mean="
                '"(127.0,)" and --config.normalization.std="(64.0,)".'
            )
        self.model = settings.model(config, num_classes)
        accumulate_steps = config.optimizer.accumulate_steps
        # An update may take several batches; the schedule counts updates.
        self.schedule = create_schedule(
            steps=max(config.train.steps // accumulate_steps, 1), **config.schedule
        )
        optimizer = create_optimizer(schedule=self.schedule, **config.optimizer)
        model = create_model(
            **self.model,
            logits_dtype=config.loss.logits_dtype,
            axis_name=parallel.axis_name,
        )
        step_args = dict(
            model=model,
            normalization=Normalization(**normalization),
            freeze_batch_stats=tuple(config.train.freeze_batch_stats),
        )
        ema_decay = config.train.ema_decay
        init = partial(
            create_state,
            model,
            optimizer,
            image_shape=image_shape,
            ema=ema_decay > 0,
        )
        self.state = parallel.abstract(jax.eval_shape(init, jax.random.key(0)))
        frozen_layers(self.state.batch_stats, config.train.freeze_batch_stats)
        self.init = jax.jit(
            init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.state)
        )
        self.train_step = parallel.compile(
            partial(
                train_step,
                optimizer=optimizer,
                loss_fn=loss_fn,
                ema_decay=ema_decay,
                **step_args,
            ),
            outputs=(parallel.specs(self.state), REPLICATED),
            donate=True,
        )
        self.batch_statistics = parallel.compile(partial(batch_statistics, **step_args))
        label = (config.train.batch_size, *image_shape[:2])
        self.batch = {
            name: jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=parallel.split)
            for name, shape in (("image", (*label, image_shape[2])), ("label", label))
        }
        # What is wrong with the step shows when it is traced: now, before there is a
        # workdir. It is traced once all the same, but for pmap, which keeps no trace.
        if parallel.backend != "pmap":
            self.train_step.eval_shape(self.state, self.batch)
