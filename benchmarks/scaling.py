"""Draws the scaling that `jaxseg plan` predicts, and prints its figures as a table.

    python benchmarks/scaling.py docs/results/plan/*.json --output docs/results/plan.png

Needs matplotlib. The lines have none of the network hidden behind other work; above
them is what hiding all of it would bring.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

PROGRAMS = (
    "| model | images | compiled for | images a group | memory | largest batch | FLOPs "
    "| main memory | collectives | compiled in |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---|---:|"
)
SLICES = (
    "| model | images | slice | mesh | batch | computation | memory | network | latency "
    "| step, at least | images/s | scaling efficiency |\n"
    "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def program(plan):
    """A line about the program that was compiled, figures of one device."""
    step, found = plan["step"], plan["largest_batch"]
    height, width, _ = plan["image_shape"]
    mesh = plan["parallel"]
    collectives = (
        f"{row['count']} {kind}, {row['bytes'] / 1e6:.1f} MB"
        for kind, row in step["collectives"].items()
    )
    cells = [
        plan["model"]["name"],
        f"{height}x{width}",
        f"{plan['topology']['name']}, {mesh['data']}x{mesh['space']}",
        plan["batch_size"] // mesh["data"],
        f"{step['bytes'] / 2**30:.2f} GiB",
        _largest(found),
        f"{step['flops']:.3g}",
        f"{step['memory_traffic'] / 1e9:.1f} GB",
        "; ".join(collectives),
        f"{step['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _largest(found):
    """What a search has found, or where there was none what it would begin with."""
    low, high = found["per_shard"], found["per_shard_too_large"]
    if len(found["tried_bytes"]) == 1:
        return f"about {found['per_shard_expected']}"
    if high is None:
        return f"at least {low}"
    return str(low) if high == low + 1 else f"{low} to {high - 1}"


def group(plans):
    """Bounds by number of chips, by network: what was compiled, and what follows."""
    groups = {}
    for plan in plans:
        height, width, _ = plan["image_shape"]
        key = (plan["model"]["name"], f"{height}x{width}", plan["parallel"]["space"])
        points = groups.setdefault(key, {})
        for one in plan["slices"]:
            points.setdefault(one["devices"], one | {"compiled": False})
        points[plan["topology"]["devices"]] = plan["bounds"] | {
            "name": plan["topology"]["name"],
            "batch_size": plan["batch_size"],
            "compiled": True,
        }
    return {key: dict(sorted(points.items())) for key, points in groups.items()}


def rows(key, points):
    """Lines of the table about one network."""
    model, image, space = key
    for devices, one in points.items():
        times = ("compute", "memory", "network", "latency", "step_at_least")
        cells = [
            model,
            image,
            f"{one['name']}{', compiled' * one['compiled']}",
            f"{devices // space}x{space}",
            one["batch_size"],
            *(f"{1e3 * one[time]:.3g} ms" for time in times),
            f"{one['images_unhidden']:,.0f} to {one['images_at_most']:,.0f}",
            f"{one['efficiency_unhidden']:.1%} to {one['efficiency_at_most']:.1%}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def draw(groups, path):
    """Images per second and scaling efficiency over the number of chips."""
    figure, (speed, efficiency) = plt.subplots(1, 2, figsize=(10, 4))
    for number, ((model, image, space), points) in enumerate(groups.items()):
        name = f"{model} {image}{f', space {space}' if space > 1 else ''}"
        chips = list(points)
        compiled = [n for n in chips if points[n]["compiled"]]
        for axes, keys in (
            (speed, ("images_unhidden", "images_at_most")),
            (efficiency, ("efficiency_unhidden", "efficiency_at_most")),
        ):
            if axes is efficiency and space > 1:  # one chip would run another program
                continue
            low, high = ([one[key] for one in points.values()] for key in keys)
            color = f"C{number}"
            axes.plot(chips, low, "o-", color=color, fillstyle="none", label=name)
            axes.fill_between(chips, low, high, color=color, alpha=0.1)
            filled = [points[n][keys[0]] for n in compiled]
            axes.plot(compiled, filled, "o", color=color)
    for axes, label in (
        (speed, "images per second"),
        (efficiency, "scaling efficiency against one chip"),
    ):
        axes.set_xscale("log", base=2)
        every = sorted({n for points in groups.values() for n in points})
        axes.set_xticks(every, [str(count) for count in every])
        axes.set_xlabel("chips (filled: compiled for them)")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    speed.set_yscale("log", base=10)
    speed.legend(fontsize=8, loc="center", bbox_to_anchor=(0.7, 0.45))
    efficiency.set_ylim(None, 1.005)
    efficiency.yaxis.set_major_formatter("{x:.1%}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    plans = [json.loads(path.read_text()) for path in args.plans]
    plans.sort(
        key=lambda plan: (
            plan["model"]["name"],
            plan["image_shape"],
            plan["topology"]["devices"],
        )
    )
    groups = group(plans)
    draw(groups, args.output)
    print(PROGRAMS, *map(program, plans), "", sep="\n")
    print(SLICES, *(row for item in groups.items() for row in rows(*item)), sep="\n")


if __name__ == "__main__":
    main()
