import math

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.utils.rounding import divide_up, round_up


@given(number=st.integers(0, 10**6), divisor=st.integers(1, 1000))
@settings(max_examples=50, deadline=None)
def test_rounds_up_to_the_next_multiple(number, divisor):
    assert divide_up(number, divisor) == math.ceil(number / divisor)
    assert 0 <= round_up(number, divisor) - number < divisor
    assert round_up(number, divisor) % divisor == 0
