"""Formats a plan as text."""

from typing import Any

from jaxseg.plan.topology import GIB


def format_plan(plan: dict[str, Any]) -> str:
    """Formats the result of `make_plan` as text."""
    return "\n".join(_lines(plan))


def _lines(plan):
    step, limit = plan["step"], plan["memory_limit"]
    height, width, channels = plan["image_shape"]
    mesh = plan["parallel"]
    yield (
        f"{plan['model']['name']}, {plan['model']['dtype']}, images of "
        f"{height}x{width}x{channels}, {plan['model']['num_classes']} classes, batches "
        f"of {plan['batch_size']} ({plan['batch_size'] // mesh['data']} for each of "
        f"data={mesh['data']})"
    )
    yield (
        f"{plan['topology']['name']}: {plan['topology']['devices']} devices, "
        f"data={mesh['data']} x space={mesh['space']}, {mesh['backend']}"
        f"{', fsdp' if mesh['fsdp'] else ''}; compiled in {step['compile_seconds']} s"
    )
    yield ""
    yield from _memory_lines(step, limit)
    if step["flops"] is not None:
        yield ""
        yield from _work_lines(step)
    if "bounds" in plan:
        yield ""
        yield from _bound_lines(plan["bounds"])
        yield from _slice_lines(plan["slices"])
    if "largest_batch" in plan:
        yield ""
    for cure in plan.get("cures", ()):
        needs = f", {_gib(cure['bytes'])} GiB" if cure.get("bytes") else ""
        verdict = "fits" if cure["fits"] else cure.get("refused", "does not fit either")
        yield f"with {format_changes(cure['changes'])}: {verdict}{needs}"
    if "largest_batch" in plan:
        yield from _batch_lines(plan["largest_batch"], mesh["data"])


def _memory_lines(step, limit):
    needs = "?" if step["bytes"] is None else _gib(step["bytes"])
    verdict = {True: "fits", False: "DOES NOT FIT", None: "limit unknown"}[step["fits"]]
    of = "" if limit is None else f" of {_gib(limit)} GiB"
    yield f"memory per device      {needs} GiB{of}: {verdict}"
    for kind, size in (step["memory"] or {}).items():
        yield f"  {kind:12} {_gib(size):>10}"


def _work_lines(step):
    yield "one step on one device"
    yield f"  {'FLOPs':20} {step['flops']:10.3g}"
    yield f"  {'bytes accessed':20} {step['bytes_accessed']:10.3g}"
    yield f"  {'  of main memory':20} {step['memory_traffic']:10.3g} at least"
    yield f"  {'collectives':20} {'count':>10} {'MB':>10} {'MB sent':>10}"
    for kind, row in step["collectives"].items():
        yield (
            f"  {kind:20} {row['count']:10} {row['bytes'] / 1e6:10.2f} "
            f"{row['sent_bytes'] / 1e6:10.2f}"
        )


def _bound_lines(bound):
    yield (
        f"lower bounds: computation {_ms(bound['compute'])}, memory "
        f"{_ms(bound['memory'])}, network {_ms(bound['network'])}"
    )
    yield (
        f"a step takes at least {_ms(bound['step_at_least'])}: at most "
        f"{bound['images_at_most']:,.0f} images/s"
    )
    yield (
        f"without overlap of the network, and with {_ms(bound['latency'])} of latency: "
        f"{_ms(bound['step_unhidden'])}, {bound['images_unhidden']:,.0f} images/s"
    )
    yield (
        f"scaling efficiency relative to one device: "
        f"{bound['efficiency_unhidden']:.1%} to {bound['efficiency_at_most']:.1%}"
    )


def _slice_lines(slices):
    if slices:
        yield ""
        yield "the same program on other slices, without and with overlap of the network"
    for one in slices:
        yield (
            f"  {one['name']:10} batches of {one['batch_size']:6}: "
            f"{one['images_unhidden']:10,.0f} to {one['images_at_most']:10,.0f} images/s, "
            f"efficiency {one['efficiency_unhidden']:.1%} to "
            f"{one['efficiency_at_most']:.1%}"
        )


def _batch_lines(found, shards):
    low, high = found["per_shard"], found["per_shard_too_large"]
    each = f"for each of data={shards}"
    if high == 1:
        yield f"largest batch: not even 1 {each} fits"
    elif high == low + 1:
        yield (
            f"largest batch: {low} {each} fits, {high} does not: "
            f"train.batch_size={found['global']}"
        )
    else:
        tried = [f"{low} fits"] * (low > 0) + [f"{high} does not fit"] * bool(high)
        yield (
            f"largest batch: about {found['per_shard_expected']} {each} if memory is "
            f"linear in it; {', '.join(tried)}"
        )


def format_changes(changes: dict[str, Any]) -> str:
    """Formats changes of a config as `key=value, ...`."""
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def _gib(size: int) -> str:
    # For small networks, two decimals would all be zero.
    return (
        f"{size / GIB:.2f}" if size == 0 or size >= GIB / 100 else f"{size / GIB:.1e}"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
