"""The largest batch, on functions whose answer is known."""

import pytest

from jaxseg.plan.search import largest_batch


def measured(memory, limit, calls):
    def measure(batch):
        calls.append(batch)
        return memory(batch), memory(batch) <= limit

    return measure


def brute_force(memory, limit):
    batch = 0
    while memory(batch + 1) <= limit:
        batch += 1
    return batch


MEMORIES = {
    "linear": lambda b: 1000 + 37 * b,
    "nothing fixed": lambda b: 50 * b,
    "in steps": lambda b: 1000 + 37 * b + 200 * (b // 8),
    "bends": lambda b: 1000 + 37 * b + b * b // 3,
    "flat at first": lambda b: 1000 + max(0, b - 20) * 60,
}


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize("first", [1, 4, 17, 200])
def test_finds_the_largest(memory, first):
    limit, calls = 3000, []
    low, high, expected = largest_batch(
        measured(memory, limit, calls), first, limit, fixed=900, compilations=20
    )
    assert low == expected == brute_force(memory, limit) and high == low + 1
    assert len(set(calls)) == len(calls)


def test_a_line_takes_three():
    """The first, the one that the line gives, and the next, which does not fit."""
    calls = []
    found = largest_batch(
        measured(lambda b: 500 + 100 * b, 2050, calls),
        4,
        2050,
        fixed=500,
        compilations=9,
    )
    assert found == (15, 16, 15) and calls == [4, 15, 16]


def test_nothing_fits():
    calls = []
    measure = measured(lambda b: 5000 + b, 3000, calls)
    assert largest_batch(measure, 3, 3000, fixed=0, compilations=9) == (0, 1, 0)


def test_stops_when_told_and_says_between_what():
    calls = []
    measure = measured(lambda b: b * b, 10_000, calls)
    low, high, expected = largest_batch(measure, 1, 10_000, fixed=0, compilations=3)
    assert len(calls) == 3
    assert low in calls and low <= 100 < (high or 10**9)
    assert low <= expected < (high or 10**9)


def test_one_compilation_is_enough_to_expect():
    measure = measured(lambda b: 500 + 100 * b, 2050, [])
    found = largest_batch(measure, 4, 2050, fixed=500, compilations=1)
    assert found == (4, None, 15)


def test_a_compiler_that_refuses_before_the_limit():
    def measure(batch):
        return 100 * batch, batch <= 7

    found = largest_batch(measure, 1, 1000, fixed=0, compilations=20)
    assert found == (7, 8, 7)


def test_a_compiler_that_saves_near_the_limit():
    """What libtpu does: 20 images take hardly more than 19. It must not ask for 1000."""

    def memory(batch):
        return 330 + (750 * batch if batch < 19 else 735 * 19 + 11 * (batch - 19))

    calls = []
    measure = measured(memory, 15_750, calls)
    _, _, expected = largest_batch(measure, 19, 15_750, fixed=330, compilations=2)
    assert calls == [19, 20] and 20 <= expected <= 24


@pytest.mark.parametrize("largest", [19, 20, 24, 29])
def test_the_end_of_what_a_compiler_saves_is_found_soon(largest):
    """As SegNet: 8 images take 6.6 GB, and from 19 on all take 14.3 until it gives up."""

    def measure(batch):
        calls.append(batch)
        if batch > largest:
            return 330 + 790 * batch, False
        return min(330 + 790 * batch, 14_300), True

    calls = []
    found = largest_batch(measure, 8, 15_750, fixed=330, compilations=9)
    assert found[:2] == (largest, largest + 1)
    assert calls[:2] == [8, 19] and len(calls) <= 8
