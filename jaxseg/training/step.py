"""The train and evaluation steps: pure functions that take and return everything.

A step is written for the local part of a batch. Under `jit` on a mesh that is the whole
batch and `axis_name` is None; under `pmap` and `shard_map` it is one device's part, and
sums are taken over `axis_name`. The losses are the same either way.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxseg.losses import divide
from jaxseg.models.freezing import freeze, frozen_layers, layer_path
from jaxseg.models.outputs import apply_in_training
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.partition import gather
from jaxseg.parallel.mesh import Batch, psum_over


class TrainState(flax.struct.PyTreeNode):
    """Everything that one step hands to the next.

    Attributes:
        step: int32, steps taken so far.
        params: the model's parameters.
        batch_stats: running statistics of its BatchNorm layers.
        opt_state: the optimiser's.
        key: typed random key of the run; step k draws from `fold_in(key, k)`.
        ema: moving average of the parameters, or nothing.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
    ema: Any

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes to evaluate: the averaged parameters, if any."""
        return {"params": self.ema or self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """The state before the first step; parameters drawn from `key`.

    Args:
        model: the network.
        optimizer: the optimiser.
        key: typed random key.
        image_shape: (H, W, C) of a training image.
        ema: whether parameters will be averaged.

    Returns:
        A `TrainState` at step 0.
    """
    init_key, run_key = jax.random.split(key)
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init(init_key, image, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=run_key,
        ema=jax.tree.map(jnp.zeros_like, variables["params"]) if ema else {},
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    normalization: Normalization,
    freeze_batch_stats: tuple[str, ...] = (),
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent.

    The loss is a global mean: its sum and its denominator are added up over all devices
    before they are divided, so that devices with many void pixels weigh less. A model
    with auxiliary heads adds their losses, each times its weight.

    With d the decay, the parameters p_1, ..., p_k after the steps so far are averaged to

        ema_k = sum_i d^(k-i) p_i / sum_i d^(k-i)

    in which, unlike in an average that starts from p_0, no step is forgotten late.

    Args:
        state: from `create_state` or the step before.
        batch: `image` uint8 [B, H, W, C] and `label` uint8 [B, H, W], the local part.
        model: the network.
        optimizer: the optimiser.
        loss_fn: (logits, label) -> (sum, denominator).
        normalization: of the image.
        freeze_batch_stats: globs over the paths of BatchNorm layers, such as
            "encoder/*", that normalise by their running statistics and keep them.
        ema_decay: d, in (0, 1), of a state that averages its parameters.
        axis_name: mapped axis of the batch, None under `jit`.

    Returns:
        The next state, and the scalars `loss` and `grad_norm`.

    Raises:
        ValueError: if a glob matches no layer.
    """
    frozen = frozen_layers(state.batch_stats, freeze_batch_stats)

    def mean(logits):
        total, denominator = psum_over(loss_fn(logits, batch["label"]), axis_name)
        return divide(total, denominator)

    def compute_loss(params):
        with freeze(frozen):
            output = apply_in_training(
                model,
                {"params": gather(params), "batch_stats": state.batch_stats},
                normalization(batch["image"]),
                jax.random.fold_in(state.key, state.step),
            )
        # Deep supervision: each auxiliary head has the loss of the main one, weighed.
        losses = [weight * mean(logits) for weight, logits in output.auxiliary]
        return sum(losses, start=mean(output.logits)), output.batch_stats

    (loss, batch_stats), grads = jax.value_and_grad(compute_loss, has_aux=True)(
        state.params
    )
    # psum inside the loss makes each device's gradient that of its own part times the
    # number of devices, so the mean, not the sum, is the gradient of the global loss.
    if axis_name is not None:
        grads = lax.pmean(grads, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params, done = optax.apply_updates(state.params, updates), state.step + 1
    state = state.replace(
        step=done,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=_average(state.ema, params, ema_decay, done) if state.ema else {},
    )
    return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}


def batch_statistics(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    normalization: Normalization,
    freeze_batch_stats: tuple[str, ...] = (),
    axis_name: str | None = None,
) -> Any:
    """The BatchNorm statistics of one batch alone, without any running average.

    Averaged over the training set they are the statistics that SegNet is evaluated
    with. A layer with momentum m updates r to m r + (1 - m) s, which is affine in r:
    from r = 0 and r = 1 both m and the batch's own s follow, whatever the layer's m.

    Args:
        state: whose parameters are used, averaged ones if it has them.
        batch: `image` uint8 [B, H, W, C], the local part.
        model: the network.
        normalization: of the image.
        freeze_batch_stats: globs of the layers that keep their running statistics.
        axis_name: mapped axis of the batch; the model itself averages over it.

    Returns:
        A tree like `state.batch_stats`.

    Raises:
        ValueError: if a glob matches no layer.

    Source: SegNet-Tutorial, compute_bn_statistics.py.
    """
    del axis_name
    image = normalization(batch["image"])
    frozen = frozen_layers(state.batch_stats, freeze_batch_stats)

    def updated(value):
        stats = jax.tree.map_with_path(
            lambda path, x: (
                x if layer_path(path) in frozen else jnp.full_like(x, value)
            ),
            state.batch_stats,
        )
        with freeze(frozen):
            variables = gather(state.variables) | {"batch_stats": stats}
            return apply_in_training(model, variables, image, state.key).batch_stats

    # A frozen layer gives the same both times, and so its own.
    return jax.tree.map(
        lambda zero, one: zero / (1 - (one - zero)), updated(0.0), updated(1.0)
    )


def _average(ema: Any, params: Any, decay: float, count: jax.Array) -> Any:
    """The average of `count` trees of parameters from that of all but the last."""
    # The newest one's weight: 1 at first, 1 - decay in the end. 1 - decay**count would
    # be rounded away where the decay is close to 1.
    weight = (1 - decay) / -jnp.expm1(count * math.log(decay))
    return optax.incremental_update(params, ema, weight)
