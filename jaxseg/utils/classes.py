"""The largest number of classes."""

MAX_CLASSES = 255
"""Label maps and predictions are uint8, and 255 is void."""


def check_max_classes(num_classes: int) -> None:
    """Raises a ValueError if label maps cannot hold this many classes."""
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"{num_classes} classes do not fit into label maps and predictions, which "
            f"are uint8 with 255 for void; use at most {MAX_CLASSES} classes."
        )
