"""Integer division and rounding, for symbolic sizes too."""

from typing import Any


def divide_up(number: Any, divisor: int) -> Any:
    """Divides an integer or a symbolic size, rounding up."""
    # Convolutions write their sizes in this form, so symbolic sizes compare equal.
    return (number - 1) // divisor + 1


def round_up(number: Any, multiple: int) -> Any:
    """Rounds an integer or a symbolic size up to a multiple."""
    return divide_up(number, multiple) * multiple
