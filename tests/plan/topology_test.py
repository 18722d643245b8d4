"""Slices of TPUs by their data sheets; fake devices."""

import dataclasses
import importlib.util

import jax
import pytest

from jaxseg.plan.topology import CHIPS, GIB, open_topology, parse_topology


@pytest.fixture(autouse=True)
def started():
    """JAX has its four devices before a topology could ask for others."""
    assert len(jax.devices()) == 4


def test_figures_are_those_of_the_data_sheets():
    v5e = CHIPS["v5e"]
    assert v5e.flops == 197e12 and v5e.memory_bandwidth == 819e9
    assert v5e.memory == 16 * GIB and v5e.usable == 15.75 * GIB
    # 1600 Gbit/s over four links, as the older sheet says.
    assert 4 * v5e.link_bandwidth == pytest.approx(1600e9 / 8)
    # 4800 Gbit/s over six.
    assert 6 * CHIPS["v5p"].link_bandwidth == pytest.approx(4800e9 / 8)


@pytest.mark.parametrize(
    ("name", "links", "hops"),
    [
        ("v5e:1x1", 0, 0),
        ("v5e:2x2", 2, 2),
        ("v5e:4x4", 2, 6),  # a corner has two neighbors; 3 + 3 to the opposite one
        ("v5e:8x16", 3, 15),  # rings along the second axis: 7 + 8
        ("v5e:16x16", 4, 16),  # rings along both
        ("v5p:2x2x4", 3, 5),  # no rings but of whole cubes
        ("v5p:4x4x8", 6, 8),
    ],
)
def test_links_and_hops(name, links, hops):
    topology = parse_topology(name)
    expected = links * topology.chip.link_bandwidth
    assert topology.send_bandwidth == pytest.approx(expected)
    assert topology.hops == hops


def test_fake_devices():
    topology = open_topology("cpu:3")
    assert list(topology.devices) == jax.devices()[:3] and topology.chip is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "v9:2x2.*v4, v5e, v5p, v6e"),
        ("v5e", "v5e.*v5e:16x16"),
        ("v5e:2y2", "unknown topology"),
        ("v5e:0x2", "unknown topology"),
        ("v5p:4x4", "v5p has 3 axes, such as v5p:4x4x4"),
        ("cpu:2x2", "give the number"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        open_topology(name)


def test_more_fake_devices_than_jax_has_started_with():
    with pytest.raises(ValueError, match=r"cpu:64.*4"):
        open_topology("cpu:64")


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jaxseg\[plan\]'"):
        open_topology("v5e:2x2")


def test_chips_can_be_written_as_json():
    assert all(dataclasses.asdict(chip) == vars(chip) for chip in CHIPS.values())


def test_descriptions_of_devices_that_are_not_here():
    pytest.importorskip("libtpu")
    assert len(open_topology("v5e:4x4").devices) == 16
    assert len(open_topology("v4:2x2x1").devices) == 4
    assert len(open_topology("v5e:1x1").devices) == 1
    with pytest.raises(ValueError, match="v5e:3x3"):
        open_topology("v5e:3x3")
