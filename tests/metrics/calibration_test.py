import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.metrics import Calibration, calibration_counts

counted = jax.jit(calibration_counts, static_argnums=(2, 3))


def random_batch(shape=(4, 6, 7), num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), shape).astype(np.float32)
    label = rng.integers(0, num_classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = 255
    return probabilities, label


def brute_force(probabilities, label, num_bins):
    sums = np.zeros((3, num_bins))
    for p, t in zip(probabilities.reshape(-1, probabilities.shape[-1]), label.flat):
        if t == 255:
            continue
        m = math.ceil(p.max() * num_bins) - 1
        sums[:, m] += 1, p.max(), p.argmax() == t
    return sums


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_counts_equal_brute_force(num_bins):
    batch = random_batch()
    count, confidence, correct = counted(*batch, num_bins)
    expected = brute_force(*batch, num_bins)
    assert count.dtype == correct.dtype == jnp.int32
    np.testing.assert_array_equal([count, correct], expected[[0, 2]])
    np.testing.assert_allclose(confidence, expected[1], rtol=1e-6)
    assert count.sum() == (batch[1] != 255).sum()


def test_edges_belong_to_the_bin_below():
    sure = jnp.array([[0.5, 0.5], [0.25, 0.75], [0, 1], [0.74, 0.26]])
    count, _, correct = counted(sure, jnp.array([0, 0, 1, 1]), 4)
    # 0.5, the first of the equals taken, right; 0.75 and 0.74, wrong; 1, right.
    assert count.tolist() == [0, 1, 2, 1]
    assert correct.tolist() == [0, 1, 0, 1]


def test_error_by_hand():
    calibration = Calibration([0, 4, 6], [0, 2, 5.4], [0, 1, 6])
    result = calibration.compute()
    # 0.4 |1/4 - 2/4| + 0.6 |1 - 0.9|
    assert result["ece"] == pytest.approx(0.4 * 0.25 + 0.6 * 0.1)
    assert result["accuracy"] == pytest.approx(0.7)
    assert result["confidence"] == pytest.approx(0.74)
    bins = result["bins"]
    assert bins["count"] == [0, 4, 6]
    assert bins["confidence"] == pytest.approx([math.nan, 0.5, 0.9], nan_ok=True)
    assert bins["accuracy"] == pytest.approx([math.nan, 0.25, 1], nan_ok=True)
    assert bins["low"] + bins["high"] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1]
    )


def test_a_model_that_knows_itself_has_no_error():
    probabilities, _ = random_batch((200, 500), 3, seed=1)
    uniform = np.random.default_rng(2).random((200, 500, 1))
    label = (uniform > probabilities.cumsum(-1)[..., :-1]).sum(-1)
    honest = Calibration(*counted(probabilities, label)).compute()
    assert honest["ece"] < 0.01
    sharper = probabilities**3 / (probabilities**3).sum(-1, keepdims=True)
    boastful = Calibration(*counted(sharper, label)).compute()
    assert boastful["ece"] > 0.1
    assert boastful["confidence"] > boastful["accuracy"] == honest["accuracy"]


def test_batches_add_up_and_void_is_nothing():
    batches = [random_batch(seed=seed) for seed in range(3)]
    total = sum((Calibration(*counted(*b)) for b in batches), Calibration.zeros())
    whole = Calibration(*counted(*map(np.concatenate, zip(*batches))))
    np.testing.assert_array_equal(total.count, whole.count)
    assert total.compute()["ece"] == pytest.approx(whole.compute()["ece"])
    probabilities, label = batches[0]
    label[label == 255] = 0  # void may be a class's own number, too
    void = (label == 0).sum()
    assert counted(probabilities, label, 15, 0)[0].sum() == label.size - void
    void = Calibration(*counted(batches[0][0], np.full((4, 6, 7), 255, np.uint8)))
    assert void.count.sum() == void.confidence.sum() == 0
    assert math.isnan(void.compute()["ece"])


def test_sharded_counts_equal_the_whole():
    batch = random_batch()
    mesh = Mesh(jax.devices()[:4], ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = counted(*(jax.device_put(part, sharding) for part in batch))
    for found, expected in zip(sharded, counted(*batch)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_millions_of_confidences_keep_their_digits():
    pixels = (2100, 4100)  # one by one, float32 would add 1 for each 0.9 at the end
    probabilities = jnp.broadcast_to(jnp.float32(0.9), (*pixels, 1))
    count, confidence, _ = counted(probabilities, jnp.zeros(pixels, jnp.uint8), 2)
    assert count[1] == 2100 * 4100
    assert confidence[1] == pytest.approx(0.9 * 2100 * 4100, rel=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected"):
        calibration_counts(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match="15 and 10 bins"):
        Calibration.zeros() + Calibration.zeros(10)
