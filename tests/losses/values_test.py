"""Values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.losses import divide
from jaxseg.losses.boundary import signed_distance
from jaxseg.losses.centerline import soft_skeleton

# One row of four pixels and two classes. Probabilities of class 1: 3/4, 1/2, 1/4 and,
# where it is void, 1/2. Class 0: TP 1/2 + 3/4, FP 1/4, FN 1/2 + 1/4.
# Class 1: TP 3/4, FP 1/2 + 1/4, FN 1/4.
P = np.array([0.75, 0.5, 0.25, 0.5])
LOGITS = jnp.asarray(np.log(np.stack([1 - P, P], -1))[None, None], jnp.float32)
LABEL = jnp.array([[[1, 0, 0, 255]]])


@pytest.mark.parametrize(
    ("loss", "kwargs", "expected"),
    [
        # 1 - 2 TP / (2 TP + FP + FN) = 1 - 2.5 / 3.5 and 1 - 1.5 / 2.5.
        ("dice", {}, (1 - 5 / 7 + 1 - 3 / 5) / 2),
        ("dice", {"classes": (1,)}, 2 / 5),
        ("dice", {"class_weights": np.array([3.0, 1.0])}, (3 * 2 / 7 + 2 / 5) / 4),
        ("dice", {"smooth": 0.5, "classes": (1,)}, 1 - 1.25 / 1.75),
        # The sum of squares is 14/16 in both classes' predictions: 9 + 4 + 1.
        ("dice", {"squared": True, "classes": (1,)}, 1 - 1.5 / (14 / 16 + 1)),
        ("jaccard", {}, (1 - 5 / 9 + 1 - 3 / 7) / 2),
        ("tversky", {"alpha": 1.0, "beta": 0.0, "classes": (1,)}, 1 / 2),
        ("tversky", {"alpha": 0.0, "beta": 1.0, "classes": (1,)}, 1 / 4),
        ("focal_tversky", {"gamma": 2.0, "alpha": 1.0, "beta": 0.0}, None),
        ("log_cosh_dice", {"classes": (1,)}, np.log(np.cosh(2 / 5))),
        # Volumes 2 and 1: weights 1/4 and 1.
        ("generalized_dice", {}, 1 - (1.25 / 4 + 0.75) / (1.75 / 4 + 1.25)),
        # Errors of class 1: 1/2, 1/4 (label), 1/4; J = 1/2, 1, 1 or 1/2, 2/3, 1.
        ("lovasz_softmax", {"classes": (1,)}, 0.5 * 0.5 + 0.25 * 0.5),
        # Distances of class 1 along the row: 0, 1, 2.
        ("boundary", {"classes": (1,)}, (0.5 * 1 + 0.25 * 2) / 3),
        (
            "focal",
            {"gamma": 2.0},
            (np.log(4 / 3) / 16 * 2 + np.log(2) / 4) / 3,
        ),
        ("ohem_cross_entropy", {"threshold": 0.6, "min_fraction": 0.0}, np.log(2)),
        (
            "ohem_cross_entropy",
            {"threshold": 0.0, "min_fraction": 0.4},  # of three: 1.2, so two, and a tie
            (np.log(2) + 2 * np.log(4 / 3)) / 3,
        ),
    ],
)
def test_by_hand(loss, kwargs, expected):
    if expected is None:  # focal_tversky: FP / (TP + FP), squared
        expected = ((0.25 / 1.5) ** 2 + 0.5**2) / 2
    value = divide(*losses.LOSSES[loss](LOGITS, LABEL, **kwargs))
    np.testing.assert_allclose(value, expected, rtol=2e-6)


def test_an_absent_class_is_left_out_or_counts():
    label = jnp.where(LABEL == 1, 0, LABEL)
    first = 1 - 2 * 1.5 / (2 * 1.5 + 1.5)
    for loss in (losses.dice, losses.lovasz_softmax):
        both = loss(LOGITS, label, absent="count")[0] * 2
        only = loss(LOGITS, label, classes=(0,))[0]
        np.testing.assert_allclose(loss(LOGITS, label)[0], only)
        # Dice of nothing is 0; Lovasz counts the largest error.
        absent = 1.0 if loss is losses.dice else 0.75
        np.testing.assert_allclose(both - only, absent, rtol=1e-6)
    np.testing.assert_allclose(losses.dice(LOGITS, label)[0], first, rtol=1e-6)


def test_images_without_a_class_that_counts_are_left_out_of_the_mean():
    logits = jnp.concatenate([LOGITS, LOGITS, LOGITS])
    label = jnp.concatenate([LABEL, jnp.zeros_like(LABEL), jnp.full_like(LABEL, 255)])
    total, denominator = losses.dice(logits, label, classes=(1,))
    assert denominator == 1
    np.testing.assert_allclose(total, 2 / 5, rtol=1e-6)
    assert losses.dice(logits, label)[1] == 2


def test_per_batch_adds_up_pixels_and_per_image_losses():
    logits = jnp.concatenate([LOGITS, LOGITS])
    label = jnp.concatenate([LABEL, 1 - LABEL.at[0, 0, 3].set(0)])
    parts = [losses.dice(logits[i : i + 1], label[i : i + 1])[0] for i in (0, 1)]
    total, images = losses.dice(logits, label)
    assert images == 2
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    row = losses.dice(logits.reshape(1, 1, 8, 2), label.reshape(1, 1, 8), per="image")
    np.testing.assert_allclose(losses.dice(logits, label, per="batch"), row, rtol=1e-6)


@pytest.mark.parametrize("loss", ["dice", "generalized_dice", "focal"])
def test_pixel_weights_count_pixels_several_times(loss):
    loss_fn = losses.LOSSES[loss]
    weighted = loss_fn(
        LOGITS, LABEL, pixel_weights=jnp.array([[[2.0, 1.0, 3.0, np.nan]]])
    )
    repeated = jnp.array([0, 0, 1, 2, 2, 2])
    plain = loss_fn(LOGITS[:, :, repeated], LABEL[:, :, repeated])
    np.testing.assert_allclose(weighted[0], plain[0], rtol=1e-6)


def test_soft_targets_of_labels_are_cross_entropy():
    target = jnp.array([[[[0.0, 1], [1, 0], [1, 0], [0, 0]]]])
    broken = LOGITS.at[0, 0, 3].set(jnp.nan)
    for denominator in ("pixels", "weights"):
        kwargs = {"class_weights": np.array([3.0, 1]), "denominator": denominator}
        np.testing.assert_allclose(
            losses.soft_cross_entropy(broken, target, **kwargs),
            losses.cross_entropy(LOGITS, LABEL, **kwargs),
            rtol=1e-6,
        )
    gradient = jax.grad(lambda x: losses.soft_cross_entropy(x, target)[0])(broken)
    np.testing.assert_array_equal(gradient[0, 0, 3], 0)
    assert np.isnan(losses.soft_cross_entropy(LOGITS, -target)[0])
    with pytest.raises(ValueError, match="of the logits' shape"):
        losses.soft_cross_entropy(LOGITS, LABEL)


def test_distances_are_to_valid_pixels_only():
    label = jnp.array([[[0, 255, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]])
    is_label = label[..., None] == jnp.arange(2)[None, None, None]
    phi = signed_distance(is_label, label != 255)[0, :, :, 1]
    root = np.sqrt(2)
    expected = [[2, 0, 1 - root, -1], [2, 1, 0, 0], [np.sqrt(5), root, 1, 1]]
    np.testing.assert_allclose(phi, expected, rtol=1e-6)


@pytest.mark.parametrize("fill", [0, 1])
def test_without_a_boundary_there_is_no_distance(fill):
    label = jnp.full((1, 3, 4), fill)
    logits = jnp.zeros((1, 3, 4, 2))
    assert losses.boundary(logits, label)[0] == 0


def test_the_skeleton_of_a_bar_is_its_middle():
    mask = np.zeros((1, 7, 9, 1), np.float32)
    mask[0, 2:5, 1:8] = 1
    valid = jnp.ones(mask.shape, bool)
    skeleton = np.asarray(soft_skeleton(jnp.asarray(mask), valid, 2))[0, ..., 0]
    assert skeleton[3, 3:6].tolist() == [1, 1, 1]
    assert skeleton[[2, 4], 3:6].sum() == 0
    # A perfect prediction has the loss 0, and one of nothing has the largest.
    logits = 100 * jnp.concatenate([1 - mask, mask], -1)
    label = jnp.asarray(mask[..., 0], jnp.int32)
    assert losses.cl_dice(logits, label)[0] < 1e-6
    assert losses.cl_dice(-logits, label)[0] > 0.8


def test_void_is_like_the_border_to_the_skeleton():
    mask = np.random.default_rng(0).random((1, 6, 8, 2)).astype(np.float32)
    valid = np.zeros((1, 6, 8, 1), bool)
    valid[:, :4, 2:] = True
    inside = soft_skeleton(
        jnp.asarray(mask[:, :4, 2:]), jnp.asarray(valid[:, :4, 2:]), 2
    )
    found = soft_skeleton(jnp.where(valid, mask, 0.0), jnp.asarray(valid), 2)
    np.testing.assert_array_equal(found[:, :4, 2:], inside)


@pytest.mark.parametrize(
    ("loss", "kwargs", "message"),
    [
        ("dice", {"per": "pixel"}, "per is 'pixel'; it must be image or batch"),
        ("dice", {"absent": "zero"}, "absent is 'zero'; it must be skip or count"),
        (
            "dice",
            {"classes": (0, 2)},
            r"classes is \(0, 2\); it must be some of 0 to 1",
        ),
        ("dice", {"classes": ()}, "it must be some of 0 to 1"),
        ("tversky", {"alpha": -1.0}, "alpha is -1.0; it must be finite"),
        ("tversky", {"gamma": 0.0}, "gamma is 0; it must be above 0"),
        ("tversky", {"transform": "exp"}, "transform is 'exp'"),
        ("dice", {"pixel_weights": jnp.ones((1, 4))}, "pixel_weights has shape"),
        ("generalized_dice", {"smooth": -1}, "smooth is -1"),
        ("focal", {"gamma": float("nan")}, "gamma is nan"),
        ("focal", {"denominator": "mean"}, "unknown denominator 'mean'"),
        ("ohem_cross_entropy", {"threshold": 2}, r"threshold must be in \[0, 1\]"),
        ("ohem_cross_entropy", {"min_fraction": -1}, r"min_fraction must be in"),
        ("cl_dice", {"smooth": 0}, "smooth is 0; it must be above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(loss, kwargs, message):
    with pytest.raises(ValueError, match=message):
        losses.LOSSES[loss](LOGITS, LABEL, **kwargs)
