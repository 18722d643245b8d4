"""Numbers and names of classes."""

from collections.abc import Sequence

MAX_CLASSES = 255
"""Label maps and predictions are uint8, and 255 is void."""


def check_max_classes(num_classes: int) -> None:
    """Raises a ValueError if label maps cannot hold this many classes."""
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"{num_classes} classes do not fit into label maps and predictions, which "
            f"are uint8 with 255 for void; use at most {MAX_CLASSES} classes."
        )


def check_trainable(names: Sequence[str]) -> None:
    """Raises a ValueError if there is only one class, which every pixel would be of."""
    if len(names) == 1:
        name = names[0]
        raise ValueError(
            f"the only class is {name!r}, so every pixel that is not void is of this "
            "class, and there is nothing to learn; name two classes, such as "
            f"'background' and {name!r}, and do not make the background void"
        )


def first_difference(names: Sequence[str], others: Sequence[str]) -> str | None:
    """How two lists of class names differ, such as "class 1 is 'disc', not 'ring'".

    Args:
        names: of the classes, by class index.
        others: names to compare with. Lists of different lengths differ, too.

    Returns:
        The first difference, or None if the names are the same in the same order.
    """
    for index, (name, other) in enumerate(zip(names, others)):
        if name != other:
            return f"class {index} is {name!r}, not {other!r}"
    if len(names) != len(others):
        return f"there are {len(names)} classes, not {len(others)}"
    return None


def are_names(names: Sequence[str]) -> bool:
    """Whether classes have names, rather than only numbers: 0, 1 or class_0, class_1."""
    numbered = enumerate(names)
    return any(name not in (str(i), f"class_{i}") for i, name in numbered)
