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
    searched = found["per_shard_too_large"] == found["per_shard"] + 1
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
        f"{'' if searched else 'about '}{found['per_shard_expected']}",
        f"{step['flops']:.3g}",
        f"{step['memory_traffic'] / 1e9:.1f} GB",
        "; ".join(collectives),
        f"{step['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def rows(plan):
    """Lines of the table: the slice compiled for, and those that follow from it."""
    mesh, name = plan["parallel"], plan["topology"]["name"]
    height, width, _ = plan["image_shape"]
    compiled = plan["bounds"] | {
        "name": f"{name}, compiled",
        "devices": plan["topology"]["devices"],
        "batch_size": plan["batch_size"],
    }
    slices = [compiled, *plan["slices"]]
    for one in sorted(slices, key=lambda one: one["devices"]):
        times = ("compute", "memory", "network", "latency", "step_at_least")
        cells = [
            plan["model"]["name"],
            f"{height}x{width}",
            one["name"],
            f"{one['devices'] // mesh['space']}x{mesh['space']}",
            one["batch_size"],
            *(f"{1e3 * one[key]:.3g} ms" for key in times),
            f"{one['images_unhidden']:,.0f} to {one['images_at_most']:,.0f}",
            f"{one['efficiency_unhidden']:.1%} to {one['efficiency_at_most']:.1%}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def draw(plans, path):
    """Images per second and scaling efficiency over the number of chips."""
    figure, (speed, efficiency) = plt.subplots(1, 2, figsize=(10, 4))
    chips = set()
    for number, plan in enumerate(plans):
        height, width, _ = plan["image_shape"]
        space, devices = plan["parallel"]["space"], plan["topology"]["devices"]
        name = f"{plan['model']['name']} {height}x{width}"
        name += f", space {space}" if space > 1 else ""
        points = {devices: plan["bounds"]}
        points |= {one["devices"]: one for one in plan["slices"]}
        x = sorted(points)
        chips.update(x)
        for axes, keys in (
            (speed, ("images_unhidden", "images_at_most")),
            (efficiency, ("efficiency_unhidden", "efficiency_at_most")),
        ):
            if axes is efficiency and space > 1:  # one chip would run another program
                continue
            low, high = ([points[n][key] for n in x] for key in keys)
            colour = f"C{number}"
            axes.plot(x, low, "o-", color=colour, fillstyle="none", label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.1)
            axes.plot(devices, points[devices][keys[0]], "o", color=colour)
    for axes, label in (
        (speed, "images per second"),
        (efficiency, "scaling efficiency against one chip"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(chips), [str(count) for count in sorted(chips)])
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
    draw(plans, args.output)
    print(PROGRAMS, *map(program, plans), "", sep="\n")
    print(SLICES, *(row for plan in plans for row in rows(plan)), sep="\n")


if __name__ == "__main__":
    main()
