"""Traffic with the main memory, worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxseg.plan.hlo import sizes
from jaxseg.plan.traffic import memory_traffic


def program(body, *computations):
    return "\n".join(
        [
            "HloModule jit_step",
            *computations,
            "ENTRY %main.1 (p: f32[100]) -> f32[100] {",
            "  %p = f32[100]{0:T(128)} parameter(0)",
            "  %near = f32[100]{0:T(128)S(1)} parameter(1)",
            "  %i = s32[]{:T(128)S(6)} parameter(2)",
            *(f"  {line}" for line in body),
            "}",
        ]
    )


PICK = """%pick (a: f32[100], b: f32[100]) -> f32[10] {
  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} parameter(1)
  %one = f32[10]{0} slice(%a), slice={[0:10]}
  %two = f32[20]{0} slice(%a), slice={[0:20]}
  ROOT %sum = f32[10]{0} custom-call(%one, %two, %b)
}"""

UPDATE = """%update (a: f32[100], b: f32[10], i: s32[]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %dus = f32[100]{0} dynamic-update-slice(%a, %b, %i)
}"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%x = f32[100]{0:T(128)} add(%p, %p)", 400 + 400 + 400),
        ("%x = f32[100]{0:T(128)S(1)} negate(%p)", 400),
        ("%x = bf16[100]{0:T(256)} convert(%near)", 200),
        ("%x = f32[100]{0:T(128)S(1)} negate(%near)", 0),
        ("%x = f32[4,25]{1,0:T(8,128)} bitcast(%p)", 0),
        ("%x = (f32[100]{0}, f32[100]{0}) tuple(%p, %p)", 0),
        # What loops and branches hand on; what they do is left out.
        ("%x = (s32[], f32[100]{0}) while(%p), condition=%c, body=%b", 0),
        ("%x = f32[100]{0} conditional(%i, %p, %p), branch_computations={%a, %b}", 0),
        ("%x = f32[7]{0:T(128)} slice(%p), slice={[0:7]}", 28 + 28),
        ("%x = f32[7]{0} dynamic-slice(%near, %i), dynamic_slice_sizes={7}", 28),
        # To the chip's memory, whole and in part; the counters are no traffic.
        (
            "%x = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) "
            "copy-start(%p)",
            400,
        ),
        (
            "%x = ((f32[100]{0:T(128)}), f32[30]{0:T(128)S(1)}, s32[]{:S(2)}) "
            "slice-start(%p), slice={[0:30]}",
            120,
        ),
        ("%x = f32[100]{0:T(128)} copy-done(%p)", 0),
        ("%x = f32[10]{0} fusion(%p, %near), kind=kLoop, calls=%pick", 120 + 40),
        ("%x = f32[10]{0} fusion(%near, %p), kind=kLoop, calls=%pick", 400 + 40),
        ("%x = f32[100]{0} fusion(%p, %near, %i), kind=kLoop, calls=%update", 40),
    ],
)
def test_each_kind(line, expected):
    assert memory_traffic(program([line], PICK, UPDATE)) == expected


def test_sizes():
    shape = (
        "((f32[2,3]{1,0:T(8,128)}, pred[5]{0}), bf16[]{:S(1)}, f8e4m3fn[3]{0}, s4[3])"
    )
    assert sizes(shape) == [24, 5, 2, 3, 2]
    assert sizes(shape, main=True) == [24, 5, 0, 3, 2]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.dot, [(64, 32), (32, 16)], 4 * (64 * 32 + 32 * 16 + 64 * 16)),
        (lambda x: 2 * jnp.sin(x) + 1, [(1000,)], 2 * 4000),
        (lambda x: lax.dynamic_slice(x, (3,), (10,)), [(1000,)], 2 * 40),
    ],
)
def test_programs_for_this_machine(function, arguments, expected):
    """Everything is in main memory; XLA's own count is the same for such as these."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arguments]
    compiled = jax.jit(function).lower(*shapes).compile()
    assert memory_traffic(compiled.as_text()) == expected
    assert compiled.cost_analysis()["bytes accessed"] == pytest.approx(
        expected, rel=0.1
    )
