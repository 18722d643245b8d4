"""Plans of a tiny SegNet on fake devices, and of programs whose memory is made up."""

import dataclasses
import json
from functools import partial

import jax
import pytest

from configs import shapes
from jaxseg.parallel.mesh import create_parallel
from jaxseg.plan import planner
from jaxseg.plan.planner import make_plan, needed_bytes
from jaxseg.plan.report import format_plan
from jaxseg.plan.topology import GIB, open_topology, parse_topology
from jaxseg.training.setup import TrainingSetup


@pytest.fixture
def config():
    config = shapes.get_config()
    config.model.kwargs = {"width": 4, "depths": (1, 1)}
    config.train.batch_size = 8
    return config


@pytest.fixture(scope="module")
def topology():
    assert len(jax.devices()) == 4  # before the topology could ask for others
    return open_topology("cpu:4")


def test_plan_of_a_real_step(config, topology):
    plan = make_plan(config, topology, num_classes=3, image_shape=(8, 16, 3))
    step = plan["step"]
    program = TrainingSetup(
        config,
        create_parallel(devices=topology.devices),
        num_classes=3,
        image_shape=(8, 16, 3),
        normalization=planner.NORMALIZATION,
        loss_fn=lambda logits, label: (logits.sum(), label.size),
    )
    # Each device is given the whole state and two of the eight images with labels.
    state = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(program.state.replace(key=None))
    )
    key = 2 * 4
    batch = 2 * 8 * 16 * (3 + 1)
    given = step["memory"]["arguments"]
    assert state + key + batch <= given <= state + key + batch + 1024  # alignment
    # The new state takes the place of the old; the loss and the norm are new.
    assert step["memory"]["outputs"] < 1024
    assert step["bytes"] == sum(step["memory"].values())

    # Gradients are summed, and means of BatchNorm and of the loss.
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(program.state.params))
    (kind,) = step["collectives"]
    row = step["collectives"][kind]
    assert kind == "all-reduce" and parameters < row["bytes"] < 1.5 * parameters
    assert row["sent_bytes"] == pytest.approx(2 * 3 / 4 * row["bytes"])

    # 8 images x 8x16 pixels: three 3x3 convolutions at least, forth and twice back.
    assert step["flops"] > 3 * 2 * 9 * (2 * 8 * 16) * (3 * 4)
    assert given < step["memory_traffic"] <= step["bytes_accessed"]
    assert step["fits"] is None and "bounds" not in plan  # no chip, no limit
    assert plan["parallel"]["data"] == 4 and plan["parallel"]["space"] == 1
    json.dumps(plan)
    assert "limit unknown" in format_plan(plan)


def made_up(fixed, per_image, *, fits_by_remat=1.0, calls=None):
    """Steps that need `fixed` bytes, and `per_image` for each image on a device."""

    def compile_step(config, topology, num_classes, image_shape, limit):
        parallel = create_parallel(**config.parallel, devices=topology.devices)
        parallel.check_batch(config.train.batch_size)
        images = config.train.batch_size / parallel.mesh.size
        size = fixed + per_image * images * (
            fits_by_remat if config.model.remat else 1.0
        )
        if calls is not None:
            calls.append(config.train.batch_size)
        return {
            "bytes": round(size),
            "fits": size <= limit,
            "memory": {"arguments": fixed, "temporaries": round(size) - fixed}
            | {"outputs": 0, "program": 0},
            "flops": 1e9,
            "bytes_accessed": 1e6,
            "memory_traffic": 1e6,
            "collectives": {},
            "compile_seconds": 1.0,
        }

    return compile_step


@pytest.fixture
def plan_of(config, topology, monkeypatch):
    def plan(compile_step, *, limit, **changes):
        monkeypatch.setattr(planner, "compile_step", compile_step)
        compilations = changes.pop("compilations", 9)
        config.update_from_flattened_dict(changes)
        return make_plan(
            config,
            topology,
            num_classes=3,
            image_shape=(8, 16, 3),
            memory=limit,
            compilations=compilations,
        )

    return plan


def test_the_largest_batch(plan_of):
    calls = []
    plan = plan_of(made_up(1000, 100, calls=calls), limit=2150)
    largest = plan["largest_batch"]
    assert largest["per_shard"] == 11 and largest["global"] == 44
    assert largest["per_shard_too_large"] == 12
    assert calls == [8, 44, 48]
    assert largest["tried_bytes"] == {"2": 1200, "11": 2100, "12": 2200}
    assert "cures" not in plan
    assert "11 for each of data=4 fits, 12 does not" in format_plan(plan)


def test_no_search(plan_of):
    calls = []
    plan = plan_of(made_up(1000, 100, calls=calls), limit=2150, compilations=0)
    assert calls == [8] and plan["largest_batch"]["per_shard_expected"] == 11
    assert (
        "about 11 for each of data=4 if memory is linear in it; 2 fits"
        in format_plan(plan)
    )


def test_remat_is_tried_where_a_step_does_not_fit(plan_of):
    plan = plan_of(made_up(1000, 1000, fits_by_remat=0.5), limit=2500)
    assert plan["step"]["fits"] is False
    assert plan["largest_batch"]["per_shard"] == 1
    assert plan["cures"] == [
        {
            "changes": {"model.remat": True},
            "fits": True,
            "bytes": 2000,
            "compile_seconds": 1.0,
        }
    ]
    said = format_plan(plan)
    assert "DOES NOT FIT" in said and "with model.remat=True: fits" in said


def test_smaller_batches_are_tried_without_a_search(plan_of):
    plan = plan_of(
        made_up(1000, 1000),
        limit=4500,
        compilations=0,
        **{"train.batch_size": 64, "model.remat": True},
    )
    tried = [(cure["changes"], cure["fits"]) for cure in plan["cures"]]
    assert tried == [
        ({"train.batch_size": 32}, False),
        ({"train.batch_size": 16}, False),
        ({"train.batch_size": 8}, True),
    ]


def test_a_search_that_ended_too_soon_says_nothing_of_small_batches(plan_of):
    """A line through a guess led to 3, which does not fit; 2 does."""
    compile_step = made_up(1000, 1000)
    plan = plan_of(
        lambda config, *args: (
            compile_step(config, *args)
            | ({"memory": None} if config.train.batch_size > 8 else {})
        ),
        limit=3500,
        compilations=1,
        **{"train.batch_size": 64, "model.remat": True},
    )
    largest = plan["largest_batch"]
    assert largest["per_shard"] == 0 and largest["per_shard_too_large"] > 1
    assert plan["cures"][-1]["changes"] == {"train.batch_size": 8}
    assert plan["cures"][-1]["fits"]


def test_space_is_tried_where_one_image_is_too_large(plan_of):
    plan = plan_of(made_up(1000, 4000), limit=2200, **{"model.remat": True})
    assert plan["largest_batch"]["per_shard"] == 0
    first, second = plan["cures"]
    assert first["changes"] == {
        "parallel.data": 2,
        "parallel.space": 2,
        "train.batch_size": 2,
    }
    assert not first["fits"]
    assert second["changes"]["parallel.space"] == 4 and second["fits"]
    assert "not even 1 for each of data=4 fits" in format_plan(plan)


def test_remat_with_space(plan_of):
    plan = plan_of(made_up(1000, 4000, fits_by_remat=0.25), limit=1600)
    assert [cure["fits"] for cure in plan["cures"]] == [False, False, True]
    assert plan["cures"][-1]["changes"] == {
        "model.remat": True,
        "parallel.data": 2,
        "parallel.space": 2,
        "train.batch_size": 2,
    }


def test_cures_that_are_refused_say_why(plan_of, topology):
    def compile_step(config, *args):
        if config.parallel.space > 1:
            raise ValueError("A map of 1 rows cannot be split")
        return made_up(1000, 4000)(config, *args)

    plan = plan_of(compile_step, limit=2200)
    assert "A map of 1 rows cannot be split" in format_plan(plan)


@pytest.mark.parametrize(
    ("compiled", "other", "changes", "message"),
    [
        ("v5e:2x2", "v6e:4x4", {}, "same chip as v5e:2x2"),
        ("cpu:4", "cpu:8", {}, "same chip as cpu:4"),
        ("v5e:2x2", "v5e:4x4", {"parallel.space": 2}, "sharded over all chips"),
        ("v5e:2x2", "v5e:4x4", {"parallel.fsdp": True}, "sharded over all chips"),
        ("v5e:2x2", "v5e:4x4", {"parallel.data": 2}, "sharded over all chips"),
    ],
)
def test_slices_that_run_another_program(
    config, topology, compiled, other, changes, message
):
    config.update_from_flattened_dict(changes)
    fake = dataclasses.replace(parse_topology(compiled), devices=topology.devices)
    with pytest.raises(ValueError, match=message):
        make_plan(
            config,
            fake,
            num_classes=3,
            image_shape=(8, 16, 3),
            slices=[parse_topology(other)],
        )


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (240.00G) exceeds available HBM (15.75G).",
            240 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
            "memory space hbm. Used 21.50G of 15.75G hbm. Exceeded by 5.75G.",
            round(21.5 * GIB),
        ),
        ("RESOURCE_EXHAUSTED: no luck", None),
    ],
)
def test_reads_the_compilers_refusal(error, size):
    assert needed_bytes(error) == size


def test_a_step_that_the_compiler_refuses(config, topology, monkeypatch):
    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 21.50G of 15.75G")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    plan = make_plan(
        config,
        topology,
        num_classes=3,
        image_shape=(8, 16, 3),
        memory=round(15.75 * GIB),
        compilations=0,
    )
    assert plan["step"]["fits"] is False and plan["step"]["flops"] is None
    assert "21.50 GiB of 15.75 GiB: DOES NOT FIT" in format_plan(plan)


def test_pmap_and_wrong_batches_are_refused(config, topology):
    plan = partial(make_plan, topology=topology, num_classes=3, image_shape=(8, 16, 3))
    config.train.batch_size = 6
    with pytest.raises(ValueError, match="use 4 or 8"):
        plan(config)
    config.train.batch_size = 8
    config.parallel.backend = "pmap"
    with pytest.raises(ValueError, match=r"parallel: .*shard_map"):
        plan(config)


def test_a_step_on_a_tpu_that_is_not_here(config):
    pytest.importorskip("libtpu")
    config.model.kwargs = {"width": 2, "depths": (1,)}
    plan = make_plan(
        config,
        open_topology("v5e:2x2"),
        num_classes=3,
        image_shape=(8, 16, 3),
        compilations=0,
        slices=[parse_topology("v5e:4x4")],
    )
    assert plan["step"]["fits"] is True and set(plan["step"]["collectives"]) == {
        "all-reduce"
    }
    assert 0 < plan["bounds"]["step_at_least"] < plan["bounds"]["step_unhidden"] < 1e-3
    assert "v5e:4x4" in format_plan(plan)
