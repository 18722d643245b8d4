"""Compiles a run's training step for a topology and says what it will take."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.ops.image_normalization import Normalization
from jaxseg.parallel.mesh import create_parallel
from jaxseg.plan.bounds import bounds, bounds_on, check_slices
from jaxseg.plan.collectives import parse_collectives, summarize
from jaxseg.plan.report import named
from jaxseg.plan.search import largest_batch
from jaxseg.plan.topology import Topology
from jaxseg.plan.traffic import memory_traffic
from jaxseg.training.config import (
    check_config,
    config_section,
    create_loss,
    model_kwargs,
)
from jaxseg.training.setup import TrainingSetup

# Only their kind counts for a plan; none is a number that a compiler could leave out.
NORMALIZATION = Normalization((127.0,), (64.0,))

MEASURES = (
    *("bytes", "fits", "memory", "flops"),
    *("bytes_accessed", "memory_traffic", "collectives"),
)
"""Of a step, on one device; None where the compiler did not get so far."""

_NEEDED = re.compile(r"(?:[Uu]sed|temporaries \() ?([\d.]+)([KMGT])")


def make_plan(
    config: ConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    memory: int | None = None,
    compilations: int = 6,
    slices: Sequence[Topology] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles the step, and others where it does not fit, and works out the bounds.

    Args:
        config: as `default_config`.
        topology: the devices.
        num_classes: K.
        image_shape: (H, W, C) of a training image.
        memory: bytes that a device has; None for what the chip's programs may have.
        compilations: to search the largest batch with, at most; 0 for no search.
        slices: others of the chip, to predict the step's bounds on without compiling.
        say: called with a line before each compilation.

    Returns:
        A tree of dicts and lists that JSON can hold; see docs/plan.md.

    Raises:
        ValueError: if the config cannot be built or does not fit the devices.
    """
    check_config(config)
    limit = memory or (topology.chip and topology.chip.usable)

    def measure(changes):
        say(f"compiling {named(changes) or 'the step'} for {topology.name} ...")
        return compile_step(
            _changed(config, changes), topology, num_classes, image_shape, limit
        )

    with config_section("parallel"):
        parallel = create_parallel(**config.parallel, devices=topology.devices)
    shards = parallel.mesh.shape["data"]
    batch = config.train.batch_size
    check_slices(slices, topology, data=shards, fsdp=parallel.fsdp)
    step = measure({})
    plan: dict[str, Any] = {
        "model": model_kwargs(config, num_classes),
        "image_shape": list(image_shape),
        "batch_size": batch,
        "parallel": config.parallel.to_dict() | dict(parallel.mesh.shape),
        "topology": {
            "name": topology.name,
            "devices": parallel.mesh.size,
            "chip": topology.chip and vars(topology.chip),
        },
        "memory_limit": limit,
        "step": step,
    }
    if topology.chip and step["flops"] is not None:
        plan["bounds"] = bounds(step, topology, batch)
        plan["slices"] = [
            bounds_on(other, step, topology, batch) | {"name": other.name}
            for other in slices
        ]
    if limit:
        plan["largest_batch"] = _search(
            step, batch // shards, shards, limit, compilations, measure
        )
    if step["fits"] is False:
        found = plan.get("largest_batch", {})
        # A search that ended before its time says nothing of the smaller batches.
        known = found.get("per_shard") or found.get("per_shard_too_large") == 1
        largest = found["per_shard"] if known else None
        plan["cures"] = _cures(config, parallel.mesh, largest, measure)
    return plan


def compile_step(
    config: ConfigDict,
    topology: Topology,
    num_classes: int,
    image_shape: tuple[int, int, int],
    limit: int | None,
) -> dict[str, Any]:
    """Compiles a training step ahead of time.

    Args:
        config: as `default_config`.
        topology: the devices.
        num_classes: K.
        image_shape: (H, W, C) of a training image.
        limit: bytes that a device has; None if that is not known.

    Returns:
        Of one device: `bytes` in all and by kind in `memory`, whether that `fits`,
        `flops`, `bytes_accessed` by XLA's count and `memory_traffic` by ours,
        `collectives` as `summarize` gives them, and the seconds that it took. Where
        the compiler gave up for want of memory all but `bytes` and `fits` is None, and
        `bytes` is what it says that it needed.
    """
    with config_section("parallel"):
        parallel = create_parallel(**config.parallel, devices=topology.devices)
    if parallel.backend == "pmap":
        raise ValueError(
            "A plan needs --config.parallel.backend=jit or shard_map; pmap runs the "
            "same step as shard_map."
        )
    with config_section("train"):
        parallel.check_batch(config.train.batch_size)
    # Weights of the classes would need the data; any positive ones cost the same.
    weighted = config.loss.class_weights != "none"
    weights = np.linspace(0.5, 1.5, num_classes, dtype=np.float32) if weighted else None
    setup = TrainingSetup(
        config,
        parallel,
        num_classes=num_classes,
        image_shape=image_shape,
        normalization=NORMALIZATION,
        loss_fn=create_loss(config, weights),
    )
    start = time.monotonic()
    found: dict[str, Any] = dict.fromkeys(MEASURES)
    try:
        compiled = setup.train_step.lower(setup.state, setup.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found |= {"fits": False, "bytes": needed_bytes(str(error))}
    else:
        memory = _memory(compiled.memory_analysis())
        total = sum(memory.values())
        cost, hlo = compiled.cost_analysis(), compiled.as_text()
        found |= {
            "bytes": total,
            "fits": None if limit is None else total <= limit,
            "memory": memory,
            "flops": cost["flops"],
            "bytes_accessed": cost["bytes accessed"],
            "memory_traffic": memory_traffic(hlo),
            "collectives": summarize(parse_collectives(hlo, parallel.mesh.size)),
        }
    return found | {"compile_seconds": round(time.monotonic() - start, 1)}


def _memory(stats) -> dict[str, int]:
    """Bytes of one device by kind; what the outputs reuse counts once."""
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def needed_bytes(error: str) -> int | None:
    """How much memory a program would have needed, from the compiler's refusal."""
    match = _NEEDED.search(error)
    if match is None:
        return None
    return round(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))


def _cures(config, mesh, largest, measure) -> list[dict[str, Any]]:
    """Compiles what may fit instead: remat, and smaller batches if none were searched.

    A smaller batch saves what splitting the rows of the same images would, without
    rows to exchange: so space is tried only where a batch of one image is too large.
    """
    cures = []

    def attempt(changes):
        try:
            step = measure(changes)
        except ValueError as error:  # maps too low to be split, say
            step = {"fits": False, "bytes": None, "refused": str(error)}
        kept = ("fits", "bytes", "compile_seconds", "refused")
        cures.append(
            {"changes": changes} | {key: step[key] for key in kept if key in step}
        )
        return step["fits"]

    data, space = mesh.shape["data"], mesh.shape["space"]
    remat = {} if config.model.remat else {"model.remat": True}
    cured = bool(remat) and attempt(remat)
    batch = config.train.batch_size
    while largest is None and batch > data:
        batch = data * (batch // data // 2)
        if attempt({"train.batch_size": batch}):
            largest = batch // data
    if largest:
        return cures
    while config.parallel.backend == "jit" and data % 2 == 0 and space < 8:
        data, space = data // 2, space * 2
        spread = {
            "parallel.data": data,
            "parallel.space": space,
            "train.batch_size": data,
        }
        if attempt(spread) or (not cured and remat and attempt(remat | spread)):
            break
    return cures


def _search(step, first, shards, limit, compilations, measure) -> dict[str, Any]:
    """The largest batch, from the step that is compiled already."""
    seen = {}

    def fits(batch):
        found = measure({"train.batch_size": batch * shards}) if seen else step
        # A compiler that does not say what it needed: a little more than there is.
        seen[batch] = found["bytes"] or limit + limit // 8
        return seen[batch], found["fits"]

    # The rest of a step is for the most part what its batch needs.
    memory = step["memory"] or {"arguments": 0, "program": 0}
    low, high, expected = largest_batch(
        fits,
        first,
        limit,
        fixed=memory["arguments"] + memory["program"],
        compilations=compilations + 1,
    )
    return {
        "per_shard": low,
        "global": low * shards,
        "per_shard_too_large": high,
        "per_shard_expected": expected,
        "tried_bytes": {str(batch): seen[batch] for batch in sorted(seen)},
    }


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(changes)
    return changed
