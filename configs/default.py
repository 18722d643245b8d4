"""The defaults: SegNet on generated shapes. A copy is a start for your own config."""

from jaxseg.training import default_config


def get_config():
    """All keys, with comments: jaxseg/training/default_config.py."""
    config = default_config()
    return config.lock()
