"""Batches: which records, in what order, and the same ones every time."""

import itertools

import grain
import numpy as np
import pytest

from jaxseg.data import eval_batches, train_batches
from jaxseg.data.records import DamagedDataError, DamagedRecordError
from tests.data.conftest import damage_record

AUGMENT = dict(scale=(0.5, 2.0), flip=0.5, brightness=0.3, hue=0.1)


@pytest.fixture
def numbered(folder):
    """Ten records; record i is an image of i everywhere."""
    for i in range(10):
        image = np.full((8, 12, 3), i, np.uint8)
        folder.add(f"{i}", image, np.full((8, 12), i, np.uint8))
    return folder.source()


@pytest.fixture
def textured(folder):
    """Seven records of noise, for which every augmentation shows."""
    rng = np.random.default_rng(0)
    for i in range(7):
        image = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        folder.add(f"{i}", image, image[..., 0] % 3)
    return folder.source()


@pytest.fixture
def mixed(folder):
    """Six records of five sizes; images hold noise, labels 1 + the record's number."""
    rng = np.random.default_rng(0)
    sizes = [(50, 60), (64, 64), (65, 60), (30, 100), (50, 60), (128, 70)]
    for i, size in enumerate(sizes):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        folder.add(f"{i}", image, np.full(size, i + 1, np.uint8))
    folder.describe(classes=[f"class_{i}" for i in range(12)])
    return folder.source()


def numbers(batch):
    return batch["image"][:, 0, 0, 0].tolist()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


# Training.


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_every_record_once_an_epoch(numbered, process_count, num_threads):
    processes = [
        train_batches(
            numbered,
            batch_size=6,
            seed=3,
            process_index=index,
            process_count=process_count,
            num_threads=num_threads,
        )
        for index in range(process_count)
    ]
    seen = []
    for _ in range(10):  # six epochs
        batches = [next(process) for process in processes]
        assert all(len(b["image"]) == 6 // process_count for b in batches)
        seen += [n for batch in batches for n in numbers(batch)]
    epochs = [seen[i : i + 10] for i in range(0, 60, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len(set(map(tuple, epochs))) == 6  # in six orders


def test_processes_share_one_batch_in_its_order(textured):
    """Joined in the order of processes, shares are the batch of a single process."""
    whole = train_batches(textured, batch_size=6, seed=1, augment=AUGMENT)
    shares = [
        train_batches(
            textured,
            batch_size=6,
            seed=1,
            augment=AUGMENT,
            process_index=index,
            process_count=3,
        )
        for index in range(3)
    ]
    for batch in take(whole, 4):
        parts = [next(share) for share in shares]
        joined = {k: np.concatenate([p[k] for p in parts]) for k in batch}
        assert_same(joined, batch)


def test_threads_change_nothing(textured):
    runs = [
        take(
            train_batches(
                textured, batch_size=3, seed=1, augment=AUGMENT, num_threads=n
            ),
            8,
        )
        for n in (0, 1, 5)
    ]
    for batches in zip(*runs, strict=True):
        assert_same(batches[0], batches[1])
        assert_same(batches[0], batches[2])


def test_restored_equals_uninterrupted(textured):
    def create():
        return train_batches(textured, batch_size=3, seed=1, augment=AUGMENT)

    whole = create()
    batches = take(whole, 9)
    begun = create()
    take(begun, 4)
    state = begun.state()
    assert state == {"next_sample": 12, "batch_size": 3}
    resumed = create()
    resumed.restore(state)
    for expected in batches[4:]:
        assert_same(next(resumed), expected)
    assert resumed.state() == {"next_sample": 27, "batch_size": 3}
    whole.restore({"next_sample": 6})  # back again
    assert_same(next(whole), batches[2])


def test_another_batch_size_goes_on_at_the_same_sample(textured):
    """Nothing is skipped or repeated, though 9 samples are no batches of 4."""
    small = train_batches(textured, batch_size=3, seed=1, augment=AUGMENT)
    expected = np.concatenate([b["image"] for b in take(small, 7)])
    small.restore({"next_sample": 0})
    take(small, 3)
    shares = [
        train_batches(
            textured,
            batch_size=4,
            seed=1,
            augment=AUGMENT,
            process_index=index,
            process_count=2,
        )
        for index in range(2)
    ]
    for share in shares:
        share.restore(small.state())
    batches = [next(share)["image"] for _ in range(3) for share in shares]
    np.testing.assert_array_equal(np.concatenate(batches), expected[9:])
    assert shares[0].state() == {"next_sample": 21, "batch_size": 4}


def test_restoring_far_ahead_reads_nothing_before(textured, monkeypatch):
    read = []
    original = type(textured).__getitem__
    monkeypatch.setattr(
        type(textured),
        "__getitem__",
        lambda self, i: read.append(i) or original(self, i),
    )
    batches = train_batches(textured, batch_size=3, seed=1, num_threads=0)
    batches.restore({"next_sample": 10**9})
    next(batches)
    assert len(read) == 3


def test_seed_decides(textured):
    def first(seed):
        batches = train_batches(textured, batch_size=7, seed=seed, augment=AUGMENT)
        return next(batches)["image"].tobytes()

    assert first(1) == first(1)
    assert len({first(seed) for seed in range(5)}) == 5


def test_augmentation_differs_between_epochs_and_between_records(folder):
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    for name in "ab":
        folder.add(name, image, image[..., 0] % 3)
    batches = train_batches(
        folder.source(), batch_size=2, seed=1, augment=AUGMENT, num_threads=0
    )
    images = [image.tobytes() for batch in take(batches, 5) for image in batch["image"]]
    assert len(set(images)) == 10


def test_data_set_smaller_than_a_batch(folder):
    folder.fill(3)
    batch = next(train_batches(folder.source(), batch_size=8, seed=0))
    assert batch["image"].shape == (8, 8, 10, 3)


def test_training_batch_layout(numbered):
    batch = next(train_batches(numbered, batch_size=2, seed=0))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((2, 8, 12, 3), np.uint8),
        "label": ((2, 8, 12), np.uint8),
    }


def test_images_are_resized_before_augmentation(numbered, mixed):
    for source in (numbered, mixed):
        batch = next(train_batches(source, batch_size=3, seed=0, image_size=(24, 32)))
        assert batch["image"].shape == (3, 24, 32, 3)
        assert batch["label"].shape == (3, 24, 32)
    augment = dict(crop_px=(16, 16))
    batch = next(
        train_batches(mixed, batch_size=3, seed=0, augment=augment, image_size=(24, 32))
    )
    assert batch["image"].shape == (3, 16, 16, 3)


def test_gray_images_keep_one_channel(folder):
    folder.fill(2)
    source = folder.source(channels=1)
    batch = next(train_batches(source, batch_size=2, seed=0, augment=AUGMENT))
    assert batch["image"].shape == (2, 8, 10, 1)
    (batch,) = eval_batches(source, batch_size=2, image_size=(16, 16))
    assert batch["image"].shape == (2, 16, 16, 1)


def test_mixed_sizes_need_one(mixed):
    with pytest.raises(ValueError, match=r"5 sizes.*image_size.*crop_px"):
        train_batches(mixed, batch_size=2, seed=0)
    augment = {"crop_px": (32, 32)}
    next(train_batches(mixed, batch_size=2, seed=0, augment=augment))


@pytest.mark.parametrize("batches", [train_batches, eval_batches])
def test_batch_that_does_not_divide(numbered, batches):
    seed = {"seed": 0} if batches is train_batches else {}
    with pytest.raises(ValueError, match=r"batch_size 5 .*multiple of 2"):
        batches(numbered, batch_size=5, process_count=2, **seed)
    with pytest.raises(ValueError, match="batch_size 0"):
        batches(numbered, batch_size=0, **seed)
    with pytest.raises(ValueError, match="process_index is 2"):
        batches(numbered, batch_size=4, process_count=2, process_index=2, **seed)


def test_bad_augmentation_is_named_before_the_first_batch(numbered):
    with pytest.raises(ValueError, match=r"'flipp'; did you mean 'flip'"):
        train_batches(numbered, batch_size=2, seed=0, augment={"flipp": 0.5})
    with pytest.raises(ValueError, match=r"flip is a probability"):
        train_batches(numbered, batch_size=2, seed=0, augment={"flip": 5})


# Evaluation.


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_evaluation_sees_every_record_once(numbered, process_count, num_threads):
    per_process = [
        list(
            eval_batches(
                numbered,
                batch_size=4,
                process_index=index,
                process_count=process_count,
                num_threads=num_threads,
            )
        )
        for index in range(process_count)
    ]
    seen = []
    for batches in per_process:
        assert len(batches) == 3  # ten records in batches of four
        for batch in batches:
            assert batch["image"].shape == (4 // process_count, 8, 12, 3)
            for image, label, size, index in zip(*batch.values(), strict=True):
                assert size.tolist() == [8, 12]
                if index < 0:
                    assert (label == 255).all()
                    continue
                record = numbered[index]
                np.testing.assert_array_equal(image, record["image"])
                np.testing.assert_array_equal(label, record["label"])
                seen.append(index)
    assert sorted(seen) == list(range(10))


def test_evaluation_starts_again_every_time(numbered):
    batches = eval_batches(numbered, batch_size=4)
    assert len(batches) == 3
    for first, second in zip(batches, batches, strict=True):
        assert_same(first, second)


def test_evaluation_batch_layout(numbered):
    batch = next(iter(eval_batches(numbered, batch_size=4)))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((4, 8, 12, 3), np.uint8),
        "label": ((4, 8, 12), np.uint8),
        "size": ((4, 2), np.int32),
        "index": ((4,), np.int32),
    }


def test_evaluation_of_mixed_sizes(mixed):
    batches = list(eval_batches(mixed, batch_size=2))
    shapes = [b["label"].shape for b in batches]
    # 50x60, 64x64 and 50x60 share a bucket; 30x100, 65x60 and 128x70 have their own.
    assert shapes == [
        (2, 64, 64), (2, 64, 64), (2, 64, 128), (2, 128, 64), (2, 128, 128),
    ]  # fmt: skip
    seen = []
    for batch in batches:
        assert batch["image"].shape == (*batch["label"].shape, 3)
        for image, label, size, index in zip(*batch.values(), strict=True):
            if index < 0:
                assert (label == 255).all() and size.tolist() == list(label.shape)
                continue
            record, (height, width) = mixed[index], size
            assert record["label"].shape == (height, width)
            np.testing.assert_array_equal(image[:height, :width], record["image"])
            np.testing.assert_array_equal(label[:height, :width], record["label"])
            assert (label[height:] == 255).all() and (label[:, width:] == 255).all()
            # Beyond the edge the image repeats its last row and column.
            assert (image[height:] == image[height - 1]).all()
            assert (image[:, width:] == image[:, [width - 1]]).all()
            seen.append(index)
    assert sorted(seen) == list(range(6))


def test_evaluation_at_another_size_scores_at_the_labels_own(mixed):
    batches = list(eval_batches(mixed, batch_size=3, image_size=(32, 48)))
    seen = []
    for batch in batches:
        assert batch["image"].shape == (3, 32, 48, 3)
        for label, size, index in zip(
            batch["label"], batch["size"], batch["index"], strict=True
        ):
            if index >= 0:
                assert (label != 255).sum() == np.prod(size)
                assert tuple(size) == mixed.sizes[index]
                seen.append(index)
    assert sorted(seen) == list(range(6))


def test_evaluation_resizes_the_whole_image_and_not_its_padding(folder):
    """An image white to its last pixel stays white, whatever its bucket."""
    for name, size in (("a", (20, 30)), ("b", (70, 30))):
        image = np.zeros((*size, 3), np.uint8)
        image[:, size[1] // 2 :] = 200
        folder.add(name, image, (image[..., 0] > 0).astype(np.uint8))
    for batch in eval_batches(folder.source(), batch_size=1, image_size=(16, 16)):
        assert (batch["image"][..., :7, :] == 0).all()
        assert (batch["image"][..., 9:, :] == 200).all()


# Damaged records.

DAMAGED = 4  # the place of the damaged record


@pytest.fixture
def damaged(folder, numbered):
    """Ten numbered records, one of them damaged; and the number at each place."""
    places = [int(numbered.name(i)) for i in range(10)]
    damage_record(numbered, DAMAGED)
    return folder, places


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_damaged_record_stops_an_epoch_with_its_name(damaged, num_threads):
    folder, _ = damaged
    batches = train_batches(
        folder.source(), batch_size=2, seed=3, num_threads=num_threads
    )
    with pytest.raises(DamagedRecordError, match="record 4 of split 'train'") as error:
        take(batches, 5)
    assert str(error.value).startswith(str(folder.source().directory))
    batches = eval_batches(folder.source(), batch_size=2, num_threads=num_threads)
    with pytest.raises(DamagedRecordError, match="record 4 of split 'train'"):
        list(batches)


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("process_count", [1, 2])
def test_a_damaged_record_is_replaced_by_the_next(damaged, num_threads, process_count):
    folder, places = damaged
    source = folder.source(on_error="skip")
    processes = [
        train_batches(
            source,
            batch_size=10,
            seed=3,
            process_index=index,
            process_count=process_count,
            num_threads=num_threads,
        )
        for index in range(process_count)
    ]
    for epoch in range(1, 4):
        seen = [n for process in processes for n in numbers(next(process))]
        expected = [*places]
        expected[DAMAGED] = places[DAMAGED + 1]
        assert sorted(seen) == sorted(expected)
        assert sum(process.skipped for process in processes) == epoch


def test_batches_with_a_replaced_record_resume_exactly(damaged):
    folder, _ = damaged
    source = folder.source(on_error="skip")
    options = dict(batch_size=4, seed=3, augment=AUGMENT)
    once = take(train_batches(source, **options), 8)
    for batch in once:
        assert batch.keys() == {"image", "label"}
    for start in (1, 3, 6):
        again = train_batches(source, **options)
        again.restore({"next_sample": 4 * start})
        for mine, theirs in zip(again, once[start:]):
            assert_same(mine, theirs)


def test_the_last_record_is_replaced_by_the_first(folder, numbered):
    damage_record(numbered, 9)
    first = int(numbered.name(0))
    source = folder.source(on_error="skip")
    batch = next(train_batches(source, batch_size=10, seed=0))
    assert numbers(batch).count(first) == 2


def test_a_split_without_any_readable_record_is_an_error(folder, monkeypatch):
    folder.fill(2)
    source = folder.source(on_error="skip")

    def fail(*args):
        raise ValueError("broken")

    monkeypatch.setattr("jaxseg.data.source.decode_label", fail)
    with pytest.raises(DamagedDataError, match="no record of split 'train'"):
        next(train_batches(source, batch_size=2, seed=0, num_threads=0))


@pytest.mark.parametrize("image_size", [None, (16, 16)])
def test_a_damaged_record_is_left_out_of_evaluations(damaged, image_size):
    folder, places = damaged
    source = folder.source(on_error="skip")
    batches = eval_batches(
        source, batch_size=4, image_size=image_size, originals=image_size is not None
    )
    for _ in range(2):
        seen = []
        for batch in batches:
            assert "skipped" not in batch
            for index, label in zip(batch["index"], batch["label"]):
                void = index < 0
                assert (label == (255 if void else places[index])).all()
                seen += [] if void else [int(index)]
        assert seen == [i for i in range(10) if i != DAMAGED]
        assert batches.skipped == 1


def test_shuffled_order_is_that_of_earlier_versions(numbered):
    """Runs of earlier versions resume with the same samples."""
    order = grain.MapDataset.source(numbered).seed(3).shuffle().repeat()
    expected = [int(order[i]["image"][0, 0, 0]) for i in range(30)]
    batches = train_batches(numbered, batch_size=10, seed=3)
    assert [n for batch in take(batches, 3) for n in numbers(batch)] == expected
