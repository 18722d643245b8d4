"""Bounds worked out by hand."""

import pytest

from jaxseg.plan.bounds import bounds, bounds_on
from jaxseg.plan.topology import CHIPS, parse_topology


def test_bounds_by_hand():
    chip = CHIPS["v5e"]
    topology = parse_topology("v5e:4x4")
    step = {
        "flops": 0.1 * chip.flops,
        "memory_traffic": 0.2 * chip.memory_bandwidth,
        # A corner of 4x4 has two links.
        "collectives": {
            "all-reduce": {"count": 900, "sent_bytes": 0.1 * chip.link_bandwidth},
            "all-gather": {"count": 100, "sent_bytes": 0.5 * chip.link_bandwidth},
        },
    }
    bound = bounds(step, topology, batch_size=64)
    assert bound == pytest.approx(
        {
            "compute": 0.1,
            "memory": 0.2,
            "network": 0.3,
            "latency": 1000 * 6e-6,  # 6 hops to the opposite corner
            "step_at_least": 0.3,
            "step_unhidden": 0.506,
            "images_at_most": 64 / 0.3,
            "images_unhidden": 64 / 0.506,
            "efficiency_at_most": 2 / 3,
            "efficiency_unhidden": 0.2 / 0.506,
        }
    )


def test_the_same_program_on_other_slices():
    """Rings of 4 send 3 quarters twice, of 256 nearly all; links and hops differ."""
    step = {
        "flops": 1e12,
        "memory_traffic": 1e9,
        "collectives": {
            "all-reduce": {"count": 50, "bytes": 2e8, "sent_bytes": 2 * 3 / 4 * 2e8}
        },
    }
    small, large = parse_topology("v5e:2x2"), parse_topology("v5e:16x16")
    found = bounds_on(large, step, small, batch_size=32)
    sent = 2 * 255 / 256 * 2e8
    expected = bounds(
        step
        | {
            "collectives": {
                "all-reduce": {"count": 50, "bytes": 2e8, "sent_bytes": sent}
            }
        },
        large,
        batch_size=2048,
    )
    assert found == pytest.approx(expected | {"devices": 256, "batch_size": 2048})
    assert found["latency"] == pytest.approx(50 * 16e-6)


def test_one_chip_loses_nothing():
    step = {"flops": 1e12, "memory_traffic": 1e9, "collectives": {}}
    bound = bounds(step, parse_topology("v5e:1x1"), batch_size=1)
    assert bound["network"] == 0 and bound["efficiency_unhidden"] == 1
