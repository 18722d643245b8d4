"""Learning-rate schedules and optimizers, built with optax."""

import fnmatch
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jaxseg.utils.names import suggest_name
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
    """Creates a learning-rate schedule, a function of the number of updates done, k.

        lr(k) = learning_rate * shape(k) * min(1, (k + 1) / (warmup_steps + 1))

        "constant"  shape(k) = 1
        "step"      shape(k) = decay^(number of boundaries <= k), or
                               decay^floor(k / every)
        "poly"      shape(k) = (1 - k / steps)^power
        "cosine"    shape(k) = (1 + cos(pi k / steps)) / 2

    "poly" and "cosine" are 0 from k = steps on. Warmup multiplies the shape: it moves
    neither the boundaries nor the end, and no update has the learning rate 0. The value
    depends only on k, so that the learning rate of any step can be logged without the
    state of the optimizer.

    Args:
        name: "constant", "step", "poly" or "cosine".
        learning_rate: the highest learning rate, positive.
        steps: number of updates of the whole run; with gradient accumulation these are
            the updates of the optimizer, not the batches.
        warmup_steps: updates of linear warmup.
        power: exponent of "poly".
        boundaries: of "step": numbers of updates after which the rate decays once more.
        every: of "step": updates between decays, in place of boundaries.
        decay: of "step": factor of each decay.

    Returns:
        A function from an integer, or an array of integers, to float32.

    Raises:
        ValueError: if the name is unknown, a number is out of range, or a "step" does
            not have exactly one of `boundaries` and `every`.

    Source: poly: DeepLab v2, section 4.1.1; step: Caffe's "step" and "multistep".
    """
    shapes = {
        "constant": lambda k: jnp.ones_like(k),
        "step": lambda k: decay ** _count_decays(k, boundaries, every),
        "poly": lambda k: (1 - jnp.minimum(k / steps, 1)) ** power,
        "cosine": lambda k: (1 + jnp.cos(math.pi * jnp.minimum(k / steps, 1))) / 2,
    }
    if name not in shapes:
        raise ValueError(f"Unknown schedule {name!r}{suggest_name(name, shapes)}")
    if learning_rate <= 0 or steps < 1 or warmup_steps < 0:
        raise ValueError(
            f"learning_rate={learning_rate}, steps={steps} and "
            f"warmup_steps={warmup_steps}; they must be positive, at least 1 and at "
            "least 0."
        )
    if name == "step" and bool(boundaries) == (every > 0):
        raise ValueError(
            'The schedule "step" needs either boundaries or every, not '
            f"boundaries={tuple(boundaries)} and every={every}."
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
    """Creates SGD with momentum or AdamW, with learning rates by parameter name.

    With g the (clipped) gradient, w the parameter and a its learning-rate multiplier,

        "sgd"    v <- momentum v + g + weight_decay w;   w <- w - a lr v
        "adamw"  w <- w - a lr (m^ / (sqrt(s^) + 1e-8) + weight_decay w),
                 m^, s^ the unbiased running means of g and g^2 (momentum, 0.999)

    SGD has PyTorch's form, with the learning rate outside the momentum. Caffe has it
    inside (v <- momentum v + lr (...)). The two are equal while the learning rate is
    constant; after a change, Caffe's updates approach the new size over about
    1 / (1 - momentum) updates, and these have it at once.

    Args:
        name: "sgd" or "adamw".
        schedule: learning rate by number of updates, from `create_schedule`.
        momentum: decay of the running mean of gradients, in [0, 1): momentum of SGD,
            beta 1 of Adam.
        weight_decay: factor of w above, per unit of learning rate. Only parameters named
            "kernel" decay, not biases and not the parameters of BatchNorm.
        decay_all: whether every parameter decays, as in SegNet-Basic's solver.
        lr_multipliers: pairs (pattern, multiplier). Patterns are shell globs for the
            whole name of a parameter, such as "encoder/conv1_1/kernel", where `*` also
            matches "/". The multiplier of a parameter is the product over all patterns
            that match it: with (("*/bias", 2.0), ("head/*", 10.0)) it is 20 for the
            bias of the head. A multiplier of 0 freezes the parameter: it neither changes
            nor decays, and its gradient is not counted in clipping.
        clip_norm: largest global norm of the gradient (gradient clipping); None for no
            clipping.
        accumulate_steps: batches whose gradients are averaged into one update (gradient
            accumulation). The schedule counts updates: batch i has the learning rate
            schedule(i // accumulate_steps).

    Returns:
        An optax transformation. Its `init` raises a ValueError if a pattern matches no
        parameter, or weights are to decay and no parameter is named "kernel".

    Raises:
        ValueError: if the name is unknown, or a number is out of range.

    Source: torch.optim.SGD; Loshchilov and Hutter, Decoupled Weight Decay
      Regularization (2019); Caffe's lr_mult.
    """
    if name not in ("sgd", "adamw"):
        known = suggest_name(name, ("sgd", "adamw"))
        raise ValueError(f"Unknown optimizer {name!r}{known}")
    for key, value, good in (
        ("momentum", momentum, 0 <= momentum < 1),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("clip_norm", clip_norm, clip_norm is None or clip_norm > 0),
        ("accumulate_steps", accumulate_steps, accumulate_steps >= 1),
    ):
        if not good:
            raise ValueError(f"{key}={value} is out of range.")

    if name == "sgd":
        descent = (_decay(weight_decay, decay_all), optax.trace(momentum))
    else:
        descent = (optax.scale_by_adam(b1=momentum), _decay(weight_decay, decay_all))
    optimizer = optax.chain(
        # First, so that frozen gradients have no effect. Last, so that momentum and
        # decay are scaled too, as by a learning rate of the parameter's own.
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
    """Adds weight_decay w to the updates of kernels, or of all parameters."""
    if weight_decay == 0:
        return optax.identity()

    def is_kernel(params):
        mask = jax.tree.map_with_path(
            lambda path, _: path_name(path).split("/")[-1] == "kernel", params
        )
        if not any(jax.tree.leaves(mask)):
            raise ValueError(
                'weight_decay applies to parameters named "kernel", and there is none '
                f"among {_some(params)}; set decay_all to decay all parameters."
            )
        return mask

    return optax.add_decayed_weights(
        weight_decay, mask=None if decay_all else is_kernel
    )


def _scale_by_path(lr_multipliers, factor):
    """Scales each update by factor(its multiplier); 0 removes even NaN and infinity."""
    pairs = [(pattern, float(multiplier)) for pattern, multiplier in lr_multipliers]
    for pattern, multiplier in pairs:
        if not 0 <= multiplier < math.inf:
            raise ValueError(
                f"The learning-rate multiplier {multiplier} of {pattern!r} is out of "
                "range; it must be at least 0 and finite."
            )

    def init(params):
        names = flatten(params)
        for pattern, _ in pairs:
            if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
                raise ValueError(
                    f"The learning-rate pattern {pattern!r} matches no parameter; "
                    f"existing parameters: {_some(params)}."
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
    """Names of some parameters, spread over the tree, for a message."""
    names = list(flatten(params))
    shown = names[:: math.ceil(len(names) / count) or 1]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
