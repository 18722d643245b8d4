"""Compiles the training step of a config for a topology and predicts its cost."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.ops.image_normalization import Normalization
from jaxseg.parallel.mesh import create_parallel
from jaxseg.plan.bounds import bounds, bounds_on, check_slices
from jaxseg.plan.collectives import parse_collectives, summarize
from jaxseg.plan.report import format_changes
from jaxseg.plan.search import largest_batch
from jaxseg.plan.topology import Topology
from jaxseg.plan.traffic import memory_traffic
from jaxseg.training.config import check_config, create_loss, model_kwargs
from jaxseg.training.errors import config_section
from jaxseg.training.setup import TrainingSetup

Config = Any
"""A `ConfigDict`; its attributes have no static types."""

# Any values that a compiler cannot optimize away.
NORMALIZATION = Normalization((127.0,), (64.0,))

MEASURES = (
    *("bytes", "fits", "memory", "flops"),
    *("bytes_accessed", "memory_traffic", "collectives"),
)
"""Measures of a step on one device; None if the compiler failed before them."""

_NEEDED = re.compile(r"(?:[Uu]sed|temporaries \() ?([\d.]+)([KMGT])")


def make_plan(
    config: Config,
    topology: Topology,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    memory: int | None = None,
    compilations: int = 6,
    slices: Sequence[Topology] = (),
    report_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles the step, and alternatives if it does not fit, and computes bounds.

    Args:
        config: see `default_config`.
        topology: the devices.
        num_classes: K.
        image_shape: (H, W, C) of a training image.
        memory: bytes of a device; None for what is usable on the chip.
        compilations: largest number of compilations to search for the largest batch;
            0 for no search.
        slices: other slices of the same chip, whose bounds are predicted without
            compiling again.
        report_progress: called with a line before each compilation.

    Returns:
        A tree of dicts and lists that can be written as JSON; see docs/plan.md.

    Raises:
        ValueError: if the config cannot be built or does not fit the devices.
    """
    check_config(config)
    limit = memory or (topology.chip and topology.chip.usable)

    def measure(changes):
        step = format_changes(changes) or "the step"
        report_progress(f"compiling {step} for {topology.name} ...")
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
        # An incomplete search says nothing about smaller batches.
        known = found.get("per_shard") or found.get("per_shard_too_large") == 1
        largest = found["per_shard"] if known else None
        plan["cures"] = _cures(config, parallel.mesh, largest, measure)
    return plan


def compile_step(
    config: Config,
    topology: Topology,
    num_classes: int,
    image_shape: tuple[int, int, int],
    limit: int | None,
) -> dict[str, Any]:
    """Compiles a training step ahead of time.

    Args:
        config: see `default_config`.
        topology: the devices.
        num_classes: K.
        image_shape: (H, W, C) of a training image.
        limit: bytes of a device; None if unknown.

    Returns:
        For one device: the total `bytes`, and by kind in `memory`; whether it `fits`;
        `flops`; `bytes_accessed` as counted by XLA; `memory_traffic`, see
        `memory_traffic`; `collectives`, see `summarize`; and `compile_seconds`. If the
        compiler ran out of memory, all but `bytes` and `fits` are None, and `bytes` is
        what the compiler reports as needed, or None.

    Raises:
        ValueError: if the config cannot be built or does not fit the devices.
    """
    with config_section("parallel"):
        parallel = create_parallel(**config.parallel, devices=topology.devices)
        if parallel.backend == "pmap":
            raise ValueError(
                "the backend pmap cannot be planned; use shard_map, which runs the "
                "same step, or jit"
            )
    with config_section("train"):
        parallel.check_batch(config.train.batch_size)
    # Real class weights would need the data; any positive weights cost the same.
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
        step: Any = setup.train_step  # jitted
        compiled = step.lower(setup.state, setup.batch).compile()
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


def _memory(stats: Any) -> dict[str, int]:
    """Bytes on one device by kind; buffers that outputs reuse are counted once."""
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def needed_bytes(error: str) -> int | None:
    """The bytes that a program needs, from the compiler's out-of-memory error."""
    match = _NEEDED.search(error)
    if match is None:
        return None
    return round(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))


def _cures(config, mesh, largest, measure) -> list[dict[str, Any]]:
    """Compiles alternatives that may fit: remat, smaller batches, sharded rows.

    Smaller batches are tried only if no search has done so. They save as much memory as
    sharding the rows of the images, without communication, so `space` is tried only if
    a batch of one image is too large.
    """
    cures = []

    def attempt(changes):
        try:
            step = measure(changes)
        except ValueError as error:  # such as maps with too few rows to shard
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
        sharded = {
            "parallel.data": data,
            "parallel.space": space,
            "train.batch_size": data,
        }
        if attempt(sharded) or (not cured and remat and attempt(remat | sharded)):
            break
    return cures


def _search(step, first, shards, limit, compilations, measure) -> dict[str, Any]:
    """Searches for the largest batch, beginning with the step already compiled."""
    tried = {}

    def measure_batch(batch):
        found = measure({"train.batch_size": batch * shards}) if tried else step
        # Not all compilers report what they needed: assume a little over the limit.
        tried[batch] = found["bytes"] or limit + limit // 8
        return tried[batch], found["fits"]

    # The other kinds of memory depend mostly on the batch.
    memory = step["memory"] or {"arguments": 0, "program": 0}
    low, high, expected = largest_batch(
        measure_batch,
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
        "tried_bytes": {str(batch): tried[batch] for batch in sorted(tried)},
    }


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(changes)
    return changed
