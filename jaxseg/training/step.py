"""The training step, as a pure function from a state and a batch to the next state.

A step computes the local part of a batch. Under `jit` on a mesh that is the whole batch,
and `axis_name` is None; under `pmap` and `shard_map` it is the part of one device, and
sums are taken over `axis_name`. The losses are the same in all cases.
"""

import math
import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxseg.losses import LossFn, apply_loss, divide
from jaxseg.models.freezing import freeze, layer_path
from jaxseg.models.outputs import apply_in_training
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.partition import gather
from jaxseg.parallel.mesh import Batch
from jaxseg.utils.collectives import psum_over


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes from one step to the next.

    Attributes:
        step: number of steps taken, int32.
        params: the model's parameters.
        batch_stats: running statistics of its BatchNorm layers.
        opt_state: state of the optimizer.
        key: typed random key of the run; step k uses `fold_in(key, k)`.
        ema: exponential moving average (EMA) of the parameters; empty without one.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
    ema: Any

    @property
    def variables(self) -> Variables:
        """Variables of the model for evaluation, with averaged parameters if any."""
        return {"params": self.ema or self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """Creates the state before the first step, with random parameters.

    Args:
        model: the network.
        optimizer: the optimizer.
        key: typed random key of the parameters and of the run.
        image_shape: (H, W, C) of a training image.
        ema: whether the state has an average of the parameters.

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
    loss_fn: LossFn,
    normalization: Normalization,
    frozen: frozenset[str] = frozenset(),
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent.

    The loss is a global mean: its sum and its denominator are added over all devices
    before they are divided, so that devices with many void pixels count less. The
    losses of auxiliary heads are added, each times its weight.

    With decay d, the average of the parameters p_1, ..., p_k after each step so far is

        ema_k = sum_i d^(k-i) p_i / sum_i d^(k-i)

    which, unlike an average that starts from p_0, is not biased to the initial
    parameters.

    Args:
        state: from `create_state` or the step before.
        batch: `image` uint8 [B, H, W, C] and `label` uint8 [B, H, W], the local part.
        model: the network.
        optimizer: the optimizer.
        loss_fn: (logits, label) -> (sum, denominator), or two dicts of them by the names
            of terms; see `combine`.
        normalization: of the image.
        frozen: names of BatchNorm layers, from `frozen_layers`, that use their running
            statistics and do not update them.
        ema_decay: d, in (0, 1), if the state has an average of the parameters.
        axis_name: mapped axis of the batch, None under `jit`.

    Returns:
        The next state, and the scalars `loss` and `grad_norm`; for a loss with terms
        also `loss_NAME` of each, times its weight and including the auxiliary heads.
    """

    def mean(logits):
        result = apply_loss(loss_fn, logits, batch["label"], axis_name)
        return jax.tree.map(divide, *psum_over(result, axis_name))

    def compute_loss(params):
        with freeze(frozen):
            output = apply_in_training(
                model,
                {"params": gather(params), "batch_stats": state.batch_stats},
                normalization(batch["image"]),
                jax.random.fold_in(state.key, state.step),
            )
        # Deep supervision: auxiliary heads have the same loss, times their weight.
        terms = mean(output.logits)
        for weight, logits in output.auxiliary:
            terms = jax.tree.map(
                lambda a, b, weight=weight: a + weight * b, terms, mean(logits)
            )
        return jax.tree.reduce(operator.add, terms), (terms, output.batch_stats)

    (loss, (terms, batch_stats)), grads = jax.value_and_grad(
        compute_loss, has_aux=True
    )(state.params)
    # With the psum inside the loss, each device has the gradient of its part times the
    # number of devices, so that the gradient of the global loss is their mean.
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
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    if isinstance(terms, dict):
        metrics |= {f"loss_{name}": value for name, value in terms.items()}
    return state, metrics


def batch_statistics(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    normalization: Normalization,
    frozen: frozenset[str] = frozenset(),
    axis_name: str | None = None,
) -> Any:
    """BatchNorm statistics of a single batch, without a running average.

    SegNet is evaluated with their average over the training set. A layer with momentum
    m updates r to m r + (1 - m) s, where s is the statistic of the batch. As this is
    affine in r, the results for r = 0 and r = 1 give both m and s.

    Args:
        state: its parameters are used, or their average if it has one.
        batch: `image` uint8 [B, H, W, C], the local part.
        model: the network.
        normalization: of the image.
        frozen: names of BatchNorm layers that keep their running statistics.
        axis_name: mapped axis of the batch; not used, as the model averages over it.

    Returns:
        A tree like `state.batch_stats`.

    Source: SegNet-Tutorial, compute_bn_statistics.py.
    """
    del axis_name
    image = normalization(batch["image"])

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

    # A frozen layer returns its own statistics both times, and so do these.
    return jax.tree.map(
        lambda zero, one: zero / (1 - (one - zero)), updated(0.0), updated(1.0)
    )


def _average(ema: Any, params: Any, decay: float, count: jax.Array) -> Any:
    """Updates an average of `count - 1` trees of parameters by one more."""
    # The weight of the new parameters falls from 1 to 1 - decay. Without expm1,
    # 1 - decay**count would be rounded to 0 for a decay close to 1.
    weight = (1 - decay) / -jnp.expm1(count * math.log(decay))
    return optax.incremental_update(params, ema, weight)
