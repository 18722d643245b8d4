"""Compares every loss with an independent implementation, in value and in gradient.

    pip install segmentation-models-pytorch monai scipy
    python -m benchmarks.losses --output docs/results/losses.md

Random logits of 3 images of 40x56 pixels and 5 classes, of which the label is a blurred,
noisy copy. "void" rows have 10 % ignored pixels, whose logits are NaN in jaxseg. Errors
are the largest absolute difference of the loss, and that of its gradient with respect to
the logits, relative to the largest entry of the gradient. All is float32 unless noted;
SMP's Lovasz loss takes differences of nearly equal float32 numbers.
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import monai.losses as monai  # pyright: ignore[reportMissingImports]
import numpy as np
import segmentation_models_pytorch.losses as smp  # pyright: ignore
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter

from jaxseg import losses

SHAPE, CLASSES, VOID = (3, 40, 56), 5, 255
TOLERANCE = 1e-4


class Case(NamedTuple):
    """A loss and its reference.

    `ours` maps logits and labels to (sum, denominator), `theirs` maps logits [B, K, H,
    W] and labels to the loss.
    """

    name: str
    ours: Callable[..., Any]
    library: str
    theirs: Callable[..., Any]
    void: bool = False


def make_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels without void, and which pixels are void."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(*SHAPE, CLASSES))
    smooth = 6 * gaussian_filter(scores, (0, 3, 3, 0))
    label = smooth.argmax(-1)
    logits = 8 * smooth + rng.normal(size=scores.shape)
    return logits.astype(np.float32), label, rng.random(SHAPE) < 0.1


def cases() -> list[Case]:
    """All comparisons."""
    weights = np.linspace(0.5, 2.0, CLASSES, dtype=np.float32)
    rng = np.random.default_rng(1)
    pixel = rng.uniform(0.5, 3, SHAPE).astype(np.float32)
    soft = rng.dirichlet(np.ones(CLASSES), SHAPE).astype(np.float32)
    one_hot = dict(softmax=True, to_onehot_y=True)
    exact = dict(**one_hot, smooth_nr=1e-3, smooth_dr=1e-3)
    same = dict(absent="count", smooth=5e-4)
    multiclass = dict(mode="multiclass", ignore_index=VOID)

    def nll(x, y):
        return F.cross_entropy(x, y, reduction="none", ignore_index=VOID)

    def top(x, y):
        values = nll(x, y).flatten()
        count = -(-int((y != VOID).sum()) // 5)
        return values.topk(count).values.mean()

    def hard(x, y):
        values = nll(x, y)
        return values[(torch.exp(-values) < 0.7) & (y != VOID)].mean()

    def weighted(x, y):
        return (torch.tensor(pixel) * nll(x, y)).sum() / (y != VOID).sum()

    def to_monai(loss):
        return lambda x, y: loss(x, y[:, None])

    def log_cosh(x, y):
        loss = smp.DiceLoss(**multiclass, classes=[2])
        return torch.log(torch.cosh(loss(x, y)))

    table = [
        ("cross_entropy", {}, "torch", _mean, True),
        ("cross_entropy", {"label_smoothing": 0.1}, "torch", _smoothed, True),
        (
            "cross_entropy",
            {"class_weights": weights, "denominator": "weights"},
            "torch",
            lambda x, y: F.cross_entropy(
                x, y, weight=torch.tensor(weights), ignore_index=VOID
            ),
            True,
        ),
        ("cross_entropy", {"pixel_weights": pixel}, "torch", weighted, True),
        (
            "soft_cross_entropy",
            {"target": soft},
            "torch",
            lambda x, y: F.cross_entropy(x, torch.tensor(soft).movedim(-1, 1)),
            False,
        ),
        (
            "focal",
            {},
            "MONAI",
            lambda x, y: (
                CLASSES
                * monai.FocalLoss(use_softmax=True, to_onehot_y=True)(x, y[:, None])
            ),
            False,
        ),
        ("ohem_cross_entropy", {"min_fraction": 0.0}, "torch", hard, True),
        (
            "ohem_cross_entropy",
            {"threshold": 0.0, "min_fraction": 0.2},
            "torch",
            top,
            True,
        ),
        ("dice", same, "MONAI", to_monai(monai.DiceLoss(**exact)), False),
        (
            "dice",
            same | {"squared": True},
            "MONAI",
            to_monai(monai.DiceLoss(**exact, squared_pred=True)),
            False,
        ),
        (
            "dice",
            same | {"per": "batch"},
            "MONAI",
            to_monai(monai.DiceLoss(**exact, batch=True)),
            False,
        ),
        ("dice", {"per": "batch"}, "SMP", smp.DiceLoss(**multiclass), True),
        (
            "dice",
            {"per": "batch", "classes": (1, 3), "smooth": 0.5},
            "SMP",
            smp.DiceLoss(**multiclass, classes=[1, 3], smooth=0.5),
            True,
        ),
        (
            "jaccard",
            same,
            "MONAI",
            to_monai(monai.DiceLoss(**exact, jaccard=True)),
            False,
        ),
        ("jaccard", {"per": "batch"}, "SMP", smp.JaccardLoss("multiclass"), False),
        (
            "tversky",
            {"alpha": 0.3, "beta": 0.7, "absent": "count", "smooth": 1e-3},
            "MONAI",
            to_monai(monai.TverskyLoss(**exact, alpha=0.3, beta=0.7)),
            False,
        ),
        (
            "tversky",
            {"alpha": 0.3, "beta": 0.7, "per": "batch"},
            "SMP",
            smp.TverskyLoss(**multiclass, alpha=0.3, beta=0.7),
            True,
        ),
        (
            "focal_tversky",
            {"per": "batch", "classes": (1,)},
            "SMP",
            smp.TverskyLoss(**multiclass, alpha=0.3, beta=0.7, gamma=0.75, classes=[1]),
            True,
        ),
        (
            "log_cosh_dice",
            {"per": "batch", "classes": (2,)},
            "SMP, torch",
            log_cosh,
            True,
        ),
        (
            "generalized_dice",
            {},
            "MONAI",
            to_monai(
                monai.GeneralizedDiceLoss(**one_hot, smooth_nr=0.0, smooth_dr=0.0)
            ),
            False,
        ),
        (
            "generalized_dice",
            {"per": "batch", "power": 1.0},
            "MONAI",
            to_monai(
                monai.GeneralizedDiceLoss(
                    **one_hot, w_type="simple", batch=True, smooth_nr=0.0, smooth_dr=0.0
                )
            ),
            False,
        ),
        (
            "lovasz_softmax",
            {},
            "SMP",
            lambda x, y: smp.LovaszLoss(**multiclass, per_image=True, from_logits=True)(
                x, y
            ),
            True,
        ),
        (
            "lovasz_softmax",
            {"per": "batch"},
            "SMP",
            smp.LovaszLoss(**multiclass, from_logits=True),
            True,
        ),
        ("lovasz_softmax", {"per": "batch"}, "torch, float64", _lovasz, True),
        ("boundary", {}, "SciPy, torch", _kervadec, False),
        (
            "cl_dice",
            {"absent": "count"},
            "MONAI",
            _cl_dice,
            False,
        ),
    ]
    return [_case(*row) for row in table]


def _case(name, kwargs, library, theirs, void):
    shown = ", ".join(
        f"{key}={value if np.ndim(value) < 1 or isinstance(value, tuple) else '...'}"
        for key, value in kwargs.items()
    )
    kwargs = dict(kwargs)
    target = kwargs.pop("target", None)

    def ours(logits, label):
        loss_fn = getattr(losses, name)
        return loss_fn(logits, label if target is None else target, **kwargs)

    return Case(f"{name}({shown})", ours, library, theirs, void)


def _mean(x, y):
    return F.cross_entropy(x, y, ignore_index=VOID)


def _smoothed(x, y):
    return F.cross_entropy(x, y, ignore_index=VOID, label_smoothing=0.1)


def _lovasz(x, y):
    """The authors' in float64; they take differences of float32 Jaccard losses."""
    valid = y != VOID
    probability = x.double().softmax(1).movedim(1, -1)[valid]
    found = []
    for k in range(CLASSES):
        is_label = (y[valid] == k).double()
        errors, order = (is_label - probability[:, k]).abs().sort(descending=True)
        is_label = is_label[order]
        intersection = is_label.sum() - is_label.cumsum(0)
        jaccard = 1 - intersection / (is_label.sum() + (1 - is_label).cumsum(0))
        found.append(errors @ torch.diff(jaccard, prepend=torch.zeros(1).double()))
    return torch.stack(found).mean()


def _cl_dice(x, y):
    """Class by class: MONAI adds up the pixels of all classes."""
    loss, probability = monai.SoftclDiceLoss(smooth=1e-12), x.softmax(1)
    one_hot = F.one_hot(y, CLASSES).movedim(-1, 1).float()
    pairs = zip(probability.split(1, dim=1), one_hot.split(1, dim=1), strict=True)
    return torch.stack([loss(p, g) for p, g in pairs]).mean()


def _kervadec(x, y):
    """The authors' one_hot2dist and SurfaceLoss."""
    phi = np.zeros(x.shape, np.float32)
    for b, k in np.ndindex(*x.shape[:2]):
        mask = y[b].numpy() == k
        if mask.any():
            outside = distance_transform_edt(~mask) * ~mask
            phi[b, k] = outside - (distance_transform_edt(mask) - 1) * mask
    return (x.softmax(1) * torch.tensor(phi)).mean()


def compare(case: Case) -> tuple[float, float, float]:
    """The loss, its error and the relative error of the gradient."""
    logits, label, void = make_data()
    label = np.where(void, VOID, label) if case.void else label
    x = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    expected = case.theirs(x, torch.tensor(label))
    expected.backward()
    assert x.grad is not None
    expected_gradient = np.moveaxis(np.asarray(x.grad), 1, -1)
    if case.void:
        logits[void] = np.nan
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: losses.divide(*case.ours(x, jnp.asarray(label))))
    )(logits)
    error = np.abs(np.asarray(gradient) - expected_gradient).max()
    return (
        float(value),
        abs(float(value) - float(expected.detach())),
        float(error / np.abs(expected_gradient).max()),
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if an error is above the tolerance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the table, Markdown")
    output = parser.parse_args(arguments).output
    jax.config.update("jax_platforms", "cpu")
    packages = ("jax", "torch", "segmentation-models-pytorch", "monai", "scipy")
    lines = [
        "# Losses against independent implementations",
        "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(),
        "",
        f"* {', '.join(f'{name} {version(name)}' for name in packages)}, "
        f"Python {platform.python_version()}; {datetime.date.today()}",
        f"* `python -m benchmarks.losses{f' --output {output}' if output else ''}`",
        "",
        "| loss | reference | void | loss | error | error of the gradient |",
        "|---|---|---|---:|---:|---:|",
    ]
    worst = 0.0
    for case in cases():
        value, error, gradient = compare(case)
        worst = max(worst, error, gradient)
        lines.append(
            f"| `{case.name}` | {case.library} | {'yes' if case.void else ''} | "
            f"{value:.5f} | {error:.1e} | {gradient:.1e} |"
        )
        print(lines[-1], flush=True)
    lines += ["", f"The largest error is {worst:.1e}."]
    if output:
        output.write_text("\n".join(lines) + "\n")
    return int(not worst < TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
