"""Trains a U-Net-like network with a custom encoder, loss and data set.

jaxseg train --config examples/own_encoder/config.py --workdir runs/own
"""

import own_components  # noqa: F401 - registers the names below

from jaxseg.training import default_config


def get_config():
    """Changes to the defaults."""
    config = default_config()
    config.model.name = "encoder_decoder"
    config.model.kwargs = {"encoder": "strided", "encoder_kwargs": {"width": 16}}
    config.loss.name = "my_focal"
    config.loss.kwargs = {"gamma": 1.5}
    config.data.dataset = "ellipses"
    config.data.options = {"examples_per_split": 100}
    config.train.steps = 200
    config.train.batch_size = 16
    config.train.eval_every_steps = 100
    return config
