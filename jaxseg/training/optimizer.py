"""Learning-rate schedules and optimisers, as optax builds them."""

import fnmatch
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jaxseg.utils.trees import flatten, path_name


def create_schedule(
    name: str,
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    power: float = 0.9,
    boundaries: Sequence[int] = (),
    every: int = 0,
    decay: float = 0.1,
) -> optax.Schedule:
    """Learning rate as a function of the number of updates done, k = 0, 1, ...

        lr(k) = learning_rate * shape(k) * min(1, (k + 1) / (warmup_steps + 1))

        "constant"  shape(k) = 1
        "step"      shape(k) = decay^(number of boundaries <= k), or
                               decay^floor(k / every)
        "poly"      shape(k) = (1 - k / steps)^power
        "cosine"    shape(k) = (1 + cos(pi k / steps)) / 2

    The last two reach 0 at k = steps and stay there. Warm-up multiplies the shape: it
    neither moves the boundaries nor the end, and no update has the learning rate 0.
    The value depends on k alone, so the learning rate of any step can be logged from
    the schedule without the optimiser's state.

    Args:
        name: "constant", "step", "poly" or "cosine".
        learning_rate: at the top, positive.
        steps: number of updates of the whole run; with accumulation these are the
            optimiser's updates, not the batches.
        warmup_steps: updates before the full learning rate.
        power: of "poly".
        boundaries: of "step": the updates from which on one more decay holds.
        every: of "step": updates between decays, instead of boundaries.
        decay: of "step": factor at each boundary.

    Returns:
        A function of an integer (or integer array) giving a float32 scalar.

    Raises:
        ValueError: for an unknown name, numbers out of range, or a "step" without
            exactly one of `boundaries` and `every`.

    Source: poly: DeepLab v2, section 4.1.1; step: Caffe's "step" and "multistep".
    """
    shapes = {
        "constant": lambda k: jnp.ones_like(k),
        "step": lambda k: decay ** _count_decays(k, boundaries, every),
        "poly": lambda k: (1 - jnp.minimum(k / steps, 1)) ** power,
        "cosine": lambda k: (1 + jnp.cos(math.pi * jnp.minimum(k / steps, 1))) / 2,
    }
    if name not in shapes:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(shapes)}")
    if learning_rate <= 0 or steps < 1 or warmup_steps < 0:
        raise ValueError(
            "learning_rate must be positive, steps at least 1 and warmup_steps at "
            f"least 0, not {learning_rate}, {steps} and {warmup_steps}"
        )
    if name == "step" and bool(boundaries) == (every > 0):
        raise ValueError(
            'schedule "step" needs either boundaries or every, not '
            f"boundaries={tuple(boundaries)} and every={every}"
        )
    shape = shapes[name]

    def schedule(count):
        k = jnp.asarray(count, jnp.float32)
        warmup = jnp.minimum(1, (k + 1) / (warmup_steps + 1))
        return learning_rate * shape(k) * warmup

    return schedule


def _count_decays(k, boundaries, every):
    if every:
        return k // every
    return sum((k >= b).astype(jnp.float32) for b in boundaries)


def create_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    lr_multipliers: Sequence[tuple[str, float]] = (),
    clip_norm: float | None = None,
    accumulate_steps: int = 1,
) -> optax.GradientTransformation:
    """SGD with momentum or AdamW, with learning rates and decay by parameter path.

    With g the gradient (clipped), w the parameter, a its learning-rate multiplier,

        "sgd"    v <- momentum v + g + weight_decay w;   w <- w - a lr v
        "adamw"  w <- w - a lr (m^ / (sqrt(s^) + 1e-8) + weight_decay w),
                 m^, s^ the unbiased running means of g and g^2 (momentum, 0.999)

    SGD is PyTorch's form, with the learning rate outside the momentum. Caffe has it
    inside (v <- momentum v + lr (...)), which is the same while it does not change;
    after a change Caffe's steps of the old size die out over 1 / (1 - momentum)
    updates, and these change at once.

    Args:
        name: "sgd" or "adamw".
        schedule: learning rate by number of updates, from `create_schedule`.
        momentum: decay of the running mean of gradients, in [0, 1): SGD's momentum,
            Adam's beta 1.
        weight_decay: factor of w above, per unit of learning rate. Only leaves named
            "kernel" decay: no bias and no parameter of BatchNorm.
        decay_all: let every parameter decay, as SegNet-Basic's solver does.
        lr_multipliers: pairs (pattern, multiplier). Patterns are shell globs over the
            whole path of a parameter, "encoder/conv1_1/kernel"; `*` also crosses "/". A
            parameter's multiplier is the product over all patterns it matches, so that
            (("*/bias", 2.0), ("head/*", 10.0)) gives the head's bias 20. Where it is 0
            the parameter is frozen: it does not move or decay at all, and its gradient
            does not count in clipping.
        clip_norm: largest global norm of the gradient; None clips nothing.
        accumulate_steps: batches whose gradients are averaged into one update. The
            schedule counts updates, so batch i has the learning rate
            schedule(i // accumulate_steps).

    Returns:
        An optax transformation. Its `init` raises ValueError for a pattern that matches
        no parameter, or for weight decay without any leaf named "kernel".

    Raises:
        ValueError: for an unknown name or a number out of range.

    Source: torch.optim.SGD; Loshchilov and Hutter, Decoupled Weight Decay
      Regularization (2019); Caffe's lr_mult.
    """
    if name not in ("sgd", "adamw"):
        raise ValueError(f"unknown optimizer {name!r}; known: sgd, adamw")
    for key, value, good in (
        ("momentum", momentum, 0 <= momentum < 1),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("clip_norm", clip_norm, clip_norm is None or clip_norm > 0),
        ("accumulate_steps", accumulate_steps, accumulate_steps >= 1),
    ):
        if not good:
            raise ValueError(f"{key} is out of range: {value}")

    if name == "sgd":
        descent = (_decay(weight_decay, decay_all), optax.trace(momentum))
    else:
        descent = (optax.scale_by_adam(b1=momentum), _decay(weight_decay, decay_all))
    optimizer = optax.chain(
        # First, so that a frozen gradient counts nowhere; last, so that the momentum
        # and the decay are scaled as well, as a learning rate of its own would.
        _scale_by_path(lr_multipliers, lambda multiplier: float(multiplier > 0)),
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        *descent,
        optax.scale_by_learning_rate(schedule),
        _scale_by_path(lr_multipliers, float),
    )
    if accumulate_steps > 1:
        multi = optax.MultiSteps(optimizer, accumulate_steps)
        optimizer = multi.gradient_transformation()
    return optimizer


def _decay(weight_decay, decay_all):
    """Adds weight_decay w, to kernels or to all."""
    if weight_decay == 0:
        return optax.identity()

    def is_kernel(params):
        mask = jax.tree.map_with_path(
            lambda path, _: path_name(path).split("/")[-1] == "kernel", params
        )
        if not any(jax.tree.leaves(mask)):
            raise ValueError(
                'weight_decay applies to leaves named "kernel", and there is none '
                f"among {_some(params)}; set decay_all to decay every parameter"
            )
        return mask

    return optax.add_decayed_weights(
        weight_decay, mask=None if decay_all else is_kernel
    )


def _scale_by_path(lr_multipliers, factor):
    """Scales each leaf by factor(its multiplier); 0 stops even NaN and infinity."""
    pairs = [(pattern, float(multiplier)) for pattern, multiplier in lr_multipliers]
    for pattern, multiplier in pairs:
        if not 0 <= multiplier < math.inf:
            raise ValueError(
                f"learning-rate multiplier of {pattern!r} is out of range: {multiplier}"
            )

    def init(params):
        names = list(flatten(params))
        for pattern, _ in pairs:
            if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
                raise ValueError(
                    f"learning-rate pattern {pattern!r} matches no parameter; "
                    f"there are {_some(params)}"
                )
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        def scale(path, leaf):
            name = path_name(path)
            by = factor(math.prod(m for p, m in pairs if fnmatch.fnmatchcase(name, p)))
            return leaf * by if by else jnp.zeros_like(leaf)

        return jax.tree.map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _some(params, count=12):
    """The names of some parameters from all over the tree, for a message."""
    names = list(flatten(params))
    shown = names[:: math.ceil(len(names) / count) or 1]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
