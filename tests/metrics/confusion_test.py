import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.metrics import (
    BoundaryF1,
    Confusion,
    ImageIoU,
    Trimap,
    confusion,
    confusion_counts,
    format_table,
)


def random_maps(num_classes, shape=(3, 7, 9), seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = 255
    return rng.integers(0, num_classes, shape).astype(np.int32), label


def brute_force(prediction, label, num_classes, ignore_index=255):
    counts = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(prediction.ravel(), label.ravel()):
        if t != ignore_index:
            counts[t, p] += 1
    return counts


@pytest.mark.parametrize("num_classes", [1, 2, 11, 150])
def test_counts_equal_brute_force(num_classes):
    prediction, label = random_maps(num_classes)
    counts = jax.jit(confusion_counts, static_argnums=2)(prediction, label, num_classes)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, brute_force(prediction, label, num_classes))


def test_counts_on_the_host_are_those_of_the_device():
    prediction, label = random_maps(4)
    prediction[0, 0], label[0, 1] = 4, 200  # no classes
    host = Confusion.of(prediction, label, 4)
    np.testing.assert_array_equal(host.counts, confusion_counts(prediction, label, 4))
    # In uint8, 10 * 30 + 29 would wrap.
    pixel = np.array([29], np.uint8), np.array([10], np.uint8)
    assert Confusion.of(*pixel, 30).counts[10, 29] == 1
    with pytest.raises(ValueError, match="must be equal"):
        Confusion.of(prediction[0], label, 4)


@pytest.mark.parametrize("num_classes", [2, 11])
def test_both_ways_of_counting_agree(num_classes):
    prediction, label = random_maps(num_classes)
    prediction[0, 0] = num_classes  # no class
    prediction[0, 1] = -1
    label[0, 2] = num_classes
    label = np.where(label == 255, -1, label.astype(np.int32))
    ways = confusion._counts_by_scatter, confusion._counts_by_matmul
    scattered, multiplied = (way(prediction, label, num_classes) for way in ways)
    assert scattered.dtype == multiplied.dtype == jnp.int32
    np.testing.assert_array_equal(scattered, multiplied)
    ok = (label >= 0) & (label < num_classes)
    ok &= (prediction >= 0) & (prediction < num_classes)
    expected = brute_force(prediction[ok], label[ok], num_classes)
    np.testing.assert_array_equal(scattered, expected)


@pytest.mark.parametrize("way", ["_counts_by_scatter", "_counts_by_matmul"])
def test_counts_beyond_float32_are_exact(way):
    pixels = 2**24 + 3
    zeros = jnp.zeros(pixels, jnp.int8)
    assert getattr(confusion, way)(zeros, zeros, 1)[0, 0] == pixels


def test_ignore_index_may_be_a_class():
    prediction, label = random_maps(3)
    label[label == 255] = 0
    np.testing.assert_array_equal(
        confusion_counts(prediction, label, 3, ignore_index=0),
        brute_force(prediction, label, 3, ignore_index=0),
    )


@pytest.mark.parametrize("axes", [("data",), (None, "data")])
def test_sharded_counts_equal_the_whole(axes):
    prediction, label = random_maps(5, (4, 8, 6))
    mesh = Mesh(jax.devices()[:4], ("data",))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    counts = jax.jit(confusion_counts, static_argnums=2)(
        jax.device_put(prediction, sharding), jax.device_put(label, sharding), 5
    )
    np.testing.assert_array_equal(counts, brute_force(prediction, label, 5))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must be equal"):
        confusion_counts(jnp.zeros((2, 3), int), jnp.zeros((2, 4), int), 2)


def test_merging_is_concatenation():
    maps = [random_maps(4, seed=seed) for seed in range(3)]
    total = sum((Confusion(brute_force(*m, 4)) for m in maps), Confusion.zeros(4))
    prediction, label = (np.concatenate(part) for part in zip(*maps))
    whole = Confusion(np.asarray(confusion_counts(prediction, label, 4)))
    np.testing.assert_array_equal(total.counts, whole.counts)
    assert total.compute("abcd") == whole.compute("abcd")
    # As the means of parts would not be.
    parts = [Confusion(brute_force(*m, 4)).compute("abcd")["miou"] for m in maps]
    assert not math.isclose(np.mean(parts), total.compute("abcd")["miou"])


def test_ratios_by_hand():
    result = Confusion(np.array([[3, 1], [2, 4]])).compute(["sky", "road"])
    assert result["pixel_accuracy"] == pytest.approx(7 / 10)
    assert result["accuracy"] == pytest.approx({"sky": 3 / 4, "road": 4 / 6})
    assert result["iou"] == pytest.approx({"sky": 3 / 6, "road": 4 / 7})
    assert result["mean_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert result["miou"] == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert result["fw_iou"] == pytest.approx((4 * 3 / 6 + 6 * 4 / 7) / 10)


# Class 1 is absent but predicted once, class 2 is nowhere at all.
SPARSE = Confusion(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))


def test_absent_classes():
    result = SPARSE.compute("abc")
    assert result["iou"] == pytest.approx({"a": 3 / 4, "b": 0, "c": math.nan}, nan_ok=1)
    assert result["accuracy"] == pytest.approx(
        {"a": 3 / 4, "b": math.nan, "c": math.nan}, nan_ok=True
    )
    assert result["miou"] == pytest.approx((3 / 4 + 0) / 2)
    assert result["mean_accuracy"] == pytest.approx(3 / 4)
    assert result["fw_iou"] == pytest.approx(3 / 4)


def test_absent_classes_as_segnet_counts_them():
    result = SPARSE.compute("abc", absent="zero")
    assert result["miou"] == pytest.approx(3 / 4 / 3)
    assert result["mean_accuracy"] == pytest.approx(3 / 4 / 3)
    assert math.isnan(result["iou"]["c"])


@pytest.mark.parametrize("absent", ["exclude", "zero"])
def test_nothing_but_void_says_nothing(absent):
    result = Confusion.zeros(2).compute("ab", absent=absent)
    by_class = [*result.pop("iou").values(), *result.pop("accuracy").values()]
    assert all(math.isnan(value) for value in [*result.values(), *by_class])


def test_beyond_int32_and_float64_counts_are_exact():
    batch = Confusion(np.array([[2**31 - 1, 0], [0, 0]], np.int32))
    total = batch + batch + batch + Confusion(np.array([[0, 0], [1, 0]], np.int32))
    assert total.counts[0, 0] == 3 * (2**31 - 1)
    odd = Confusion(np.array([[2**53, 0], [0, 0]])) + Confusion(np.eye(2, dtype=int))
    assert odd.counts[0, 0] == 2**53 + 1
    # Ratios of large counts do not overflow either.
    large = Confusion(np.array([[2**60, 2**60], [0, 2**61]])).compute("ab")
    assert large["fw_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="1 class names for 2"):
        Confusion.zeros(2).compute(["a"])
    with pytest.raises(ValueError, match="must differ"):
        Confusion.zeros(2).compute(["a", "a"])
    with pytest.raises(ValueError, match="known: exclude, zero"):
        Confusion.zeros(2).compute("ab", absent="nan")
    with pytest.raises(ValueError, match="2 and 3 classes"):
        Confusion.zeros(2) + Confusion.zeros(3)
    with pytest.raises(ValueError, match="integers"):
        Confusion(np.eye(2))
    with pytest.raises(ValueError, match=r"\[K, K\]"):
        Confusion(np.zeros((2, 3), int))


def test_table():
    result = SPARSE.compute(["sky", "pedestrian", "c"])
    assert format_table(result).splitlines() == [
        "class          IoU  accuracy",
        "----------------------------",
        "sky           75.0      75.0",
        "pedestrian     0.0         -",
        "c                -         -",
        "----------------------------",
        "mean          37.5      75.0",
        "pixel accuracy 75.0, frequency-weighted IoU 75.0 (all in percent)",
    ]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, -1], [0, 0]], "one is -1"),
        ([[1.0, math.nan], [0, 0]], "must be integers, not float64"),
        (np.full((1, 1), 2**63, np.uint64), "from 0 to 2"),
        (np.zeros((0, 0), np.int64), "num_classes is 0"),
    ],
)
def test_what_is_no_count_is_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        Confusion(np.array(counts))


def test_sums_that_overflow_are_refused():
    most = Confusion(np.full((1, 1), 2**62))
    with pytest.raises(ValueError, match="from 0 to 2"):
        most + most


@pytest.mark.parametrize("num_classes", [-1, 0, 2**14 + 1, 10**6])
def test_impossible_numbers_of_classes_are_refused(num_classes):
    label = np.zeros((2, 2), np.int32)
    for create in (
        lambda: confusion_counts(label, label, num_classes),
        lambda: Confusion.of(label, label, num_classes),
        lambda: Confusion.zeros(num_classes),
        lambda: ImageIoU.zeros(num_classes),
        lambda: BoundaryF1.of(0, label, label, num_classes),
        lambda: Trimap.zeros(num_classes),
    ):
        with pytest.raises(ValueError, match=f"num_classes is {num_classes}"):
            create()


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint8])
def test_labels_of_any_integer_type(kind):
    label = np.array([0, 1, 1], kind)
    for prediction in (label, label.astype(np.int64)):
        counts = Confusion.of(prediction, label, 2).counts
        np.testing.assert_array_equal(counts, [[1, 0], [0, 2]])


def test_maps_of_floats_are_refused():
    label = np.zeros((2, 2), np.uint8)
    for count in (confusion_counts, Confusion.of):
        with pytest.raises(ValueError, match="predictions must be integers"):
            count(np.full((2, 2), np.nan, np.float32), label, 2)


def test_names_in_the_table_are_escaped_and_aligned():
    lines = format_table(Confusion.zeros(2).compute(["a\x1b\n", "b"])).splitlines()
    assert lines[2].startswith(r"a\x1b\n  ") and len(lines[2]) == len(lines[3])
