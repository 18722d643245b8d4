"""Collectives from compiled programs, their bytes worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxseg.plan.collectives import Collective, parse_collectives, summarize

# Lines as XLA writes them for CPU (listed and named groups) and for TPU (the rest).
MODULE = """
HloModule jit_step, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%all-reduce-scatter.2 (input: f32[3,3,128,512]) -> f32[3,3,128,128] {
  %all-reduce.3 = f32[3,3,128,512]{3,2,1,0:T(8,128)} all-reduce(%input), \
channel_id=13, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true
  ROOT %dynamic-slice.1 = f32[3,3,128,128]{3,2,1,0} dynamic-slice(%all-reduce.3)
}

ENTRY %main.1 (param: f32[3]) -> f32[3] {
  %all-reduce.1 = (f32[16]{0:T(128)S(1)}, /*index=1*/bf16[2,8]{1,0:T(8,128)(2,1)}) \
all-reduce(%a, %b), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %all-gather.6 = bf16[3,3,128,512]{3,2,1,0:T(8,128)(2,1)S(1)} all-gather(%copy.2), \
replica_groups=mesh['axis_0'=2,'axis_1'=3,'axis_2'=4] {'axis_0','axis_2'}, \
frontend_attributes={async_collective_name="all-gather-start"}
  %collective-permute-start = (bf16[2,1,512,128]{3,2,1,0}, bf16[2,1,512,128]{3,2,1,0}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
  %collective-permute-done = bf16[2,1,512,128]{3,2,1,0} \
collective-permute-done(%collective-permute-start)
  %reduce-scatter = f32[5]{0} reduce-scatter(%y), replica_groups={{0,2},{1,3}}
  %all-to-all = (pred[7]{0}, pred[7]{0}) all-to-all(%p, %q), replica_groups={}
  ROOT %fusion = f32[3]{0} fusion(%all-reduce.1), calls=%f, metadata={op_name="a all-reduce("}
}
"""


def test_reads_every_form():
    found = parse_collectives(MODULE, devices=8)
    kernel = 3 * 3 * 128 * 512
    assert found == [
        Collective("reduce-scatter", 4 * kernel, 4),
        Collective("all-reduce", 4 * 16 + 2 * 2 * 8, 4),
        Collective("all-gather", 2 * kernel, 2 * 4),
        Collective("collective-permute", 2 * 2 * 512 * 128, 8),
        Collective("reduce-scatter", 2 * 5 * 4, 2),
        Collective("all-to-all", 2 * 7, 8),
    ]


def test_part_of_an_axis_is_a_group():
    hlo = (
        "ENTRY %main (a: f32[10]) -> f32[10] {\n"
        "  ROOT %all-reduce.1 = f32[10]{0} all-reduce(%a), "
        "replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4,'axis_1'}\n}"
    )
    assert parse_collectives(hlo, devices=16) == [Collective("all-reduce", 40, 8)]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        # Around a ring of 4 each device sends 3 quarters of 1000 bytes, of a sum twice.
        ("all-reduce", 1500),
        ("all-gather", 750),
        ("reduce-scatter", 750),
        ("all-to-all", 750),
        ("collective-permute", 1000),
    ],
)
def test_bytes_sent(kind, sent):
    assert Collective(kind, 1000, 4).sent == sent


def test_one_device_has_nothing_to_send():
    assert Collective("all-reduce", 1000, 1).sent == 0


def test_summary_adds_up_by_kind():
    total = summarize(
        [
            Collective("all-reduce", 100, 2),
            Collective("all-gather", 30, 3),
            Collective("all-reduce", 8, 4),
        ]
    )
    assert total == {
        "all-reduce": {"count": 2, "bytes": 108, "sent_bytes": 100 + 12},
        "all-gather": {"count": 1, "bytes": 30, "sent_bytes": 20},
    }


@pytest.mark.parametrize(
    ("function", "out", "expected"),
    [
        # Each device holds [2, 12] float32, 96 bytes, of [8, 12].
        (partial(lax.psum, axis_name="i"), P(), ("all-reduce", 96, 4)),
        (
            partial(lax.all_gather, axis_name="i", tiled=True),
            P(),
            ("all-gather", 4 * 96, 4),
        ),
        (
            partial(lax.psum_scatter, axis_name="i", scatter_dimension=1, tiled=True),
            P(None, "i"),
            ("reduce-scatter", 96, 4),
        ),
        (
            partial(lax.ppermute, axis_name="i", perm=[(0, 1), (1, 2), (2, 3)]),
            P("i"),
            ("collective-permute", 96, 4),
        ),
        (
            partial(
                lax.all_to_all, axis_name="i", split_axis=1, concat_axis=0, tiled=True
            ),
            P(None, "i"),
            ("all-to-all", 96, 4),
        ),
    ],
)
def test_real_programs(function, out, expected):
    mesh = Mesh(np.array(jax.devices()[:4]), ("i",))
    step = jax.shard_map(
        function, mesh=mesh, in_specs=P("i"), out_specs=out, check_vma=False
    )
    compiled = jax.jit(step).lower(jnp.zeros((8, 12))).compile()
    found = parse_collectives(compiled.as_text(), devices=4)
    assert found == [Collective(*expected)]


def test_data_parallel_gradients_are_summed_once():
    """The kernel's gradient, [5, 3] float32, over 4 devices; nothing else."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def gradient(kernel, x):
        return jax.grad(lambda kernel: ((x @ kernel) ** 2).sum())(kernel)

    placed = [jax.sharding.NamedSharding(mesh, spec) for spec in (P(), P("data"))]
    step = jax.jit(gradient, in_shardings=placed, out_shardings=placed[0])
    text = step.lower(jnp.zeros((5, 3)), jnp.zeros((8, 5))).compile().as_text()
    assert parse_collectives(text, devices=4) == [Collective("all-reduce", 60, 4)]
