"""The training setup of a config: model, optimizer, state and compiled steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.losses import LossFn
from jaxseg.models import create_model
from jaxseg.models.freezing import frozen_layers
from jaxseg.models.outputs import with_logits_dtype
from jaxseg.ops.image_normalization import Normalization
from jaxseg.parallel.mesh import REPLICATED, Parallel
from jaxseg.training.config import Config, model_kwargs
from jaxseg.training.errors import ConfigError, config_section
from jaxseg.training.optimizer import create_optimizer, create_schedule
from jaxseg.training.step import batch_statistics, create_state, train_step


class TrainingSetup:
    """The model, optimizer and step functions of a run, for the devices that it uses.

    Nothing is compiled yet, no data is needed, and the devices do not have to exist:
    `state` and `batch` are abstract, so that `train_step.lower(state, batch).compile()`
    compiles a step ahead of time.

    Attributes:
        model: the network, with float32 logits; for evaluation.
        model_kwargs: its keyword arguments for `create_model`.
        schedule: learning rate by number of updates.
        init: called as `(key=...)`, returns the state before the first step.
        train_step: called with a state, whose memory it reuses, and a batch; see
            `training.step.train_step`.
        batch_statistics: called with a state and a batch; see
            `training.step.batch_statistics`.
        state: shapes, types and placements of the state.
        batch: shapes, types and placements of the global batch (not for `pmap`).
    """

    def __init__(
        self,
        config: Config,
        parallel: Parallel,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalization: Normalization,
        loss_fn: LossFn,
    ):
        """Builds the model, the optimizer and the steps.

        Args:
            config: as `default_config`, and checked by `check_config`.
            parallel: the devices and how to use them.
            num_classes: K.
            image_shape: (H, W, C) of a training image.
            normalization: of the images.
            loss_fn: (logits, label) -> (sum, denominator); see `create_loss`.

        Raises:
            ConfigError: if a name in the config does not exist, or the images cannot be
                split over the devices.
        """
        channels = image_shape[2]
        for values in (normalization.mean, normalization.std):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"{normalization} does not fit images with {channels} channels; "
                    'set config.normalization.mean="(127.0,)" and '
                    'config.normalization.std="(64.0,)" for any number of channels.'
                )
        self.model_kwargs = model_kwargs(config, num_classes)
        accumulate_steps = config.optimizer.accumulate_steps
        with config_section("schedule"):
            # An update may use several batches; the schedule counts updates.
            self.schedule = create_schedule(
                steps=max(config.train.steps // accumulate_steps, 1), **config.schedule
            )
        with config_section("optimizer"):
            optimizer = create_optimizer(schedule=self.schedule, **config.optimizer)

        def init_optimizer(params):
            with config_section("optimizer"):  # patterns that match no parameter
                return optimizer.init(params)

        with config_section("model"):
            model = create_model(
                **self.model_kwargs,
                logits_dtype=config.loss.logits_dtype,
                axis_name=parallel.axis_name,
            )
        self.model = with_logits_dtype(model, jnp.float32)
        ema_decay = config.train.ema_decay
        init = partial(
            create_state,
            model,
            optimizer._replace(init=init_optimizer),
            image_shape=image_shape,
            ema=ema_decay > 0,
        )
        with config_section("model"):
            state = jax.eval_shape(init, jax.random.key(0))
        self.state = parallel.abstract(state)
        with config_section("train.freeze_batch_stats"):
            frozen = frozen_layers(
                self.state.batch_stats, config.train.freeze_batch_stats
            )
        step_args = dict(model=model, normalization=normalization, frozen=frozen)
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
        # Errors in the step appear when it is traced: here, before the workdir is
        # created. jit keeps the trace, so that the step is traced only once. pmap would
        # not.
        if parallel.backend != "pmap":
            compiled: Any = self.train_step
            compiled.eval_shape(self.state, self.batch)
