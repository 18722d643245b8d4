"""Every config builds what it names, and none has a key that no builder knows."""

import pytest

from configs import ablation
from jaxseg.cli.config_file import read_config, shipped_configs
from jaxseg.models import create_model
from jaxseg.training import default_config
from jaxseg.training.config import model_kwargs
from jaxseg.training.optimizer import create_optimizer, create_schedule

CONFIGS = shipped_configs()


def read(name: str, text: str = ""):
    """A shipped config, as the commands read it."""
    return read_config(f"{CONFIGS[name]}{text and ':'}{text}")


def check(config):
    """Builds the model and the optimizer."""
    create_model(**model_kwargs(config, num_classes=11))
    schedule = create_schedule(steps=config.train.steps, **config.schedule)
    create_optimizer(schedule=schedule, **config.optimizer)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(name):
    config = read(name)
    assert config.is_locked
    assert _keys(config) == _keys(default_config())
    check(config)


def _keys(config):
    """The names of a config's sections and keys."""
    return {
        section: sorted(value) if hasattr(value, "keys") else None
        for section, value in config.items()
    }


def test_there_is_a_config_for_each_result():
    assert len(CONFIGS) > 10 and "__init__" not in CONFIGS


def test_the_staged_config_is_the_three_configs():
    config = read("fcn_vgg16_camvid_staged")
    assert len(config.stages) == 3
    for name, changes in config.stages:
        stage = config.copy_and_resolve_references()
        stage.stages = ()
        with stage.unlocked():
            stage.update_from_flattened_dict(changes)
        assert stage.to_dict() == read(f"{name}_vgg16_camvid").to_dict()


@pytest.mark.parametrize("name", ablation.COMPONENTS)
def test_ablations_differ_in_one_component(name):
    config = read("ablation", name)
    check(config)
    kwargs = config.model.kwargs.to_dict()
    base = read("ablation", "bilinear").model.kwargs.to_dict()
    different = {key for key in base if base[key] != kwargs[key]}
    assert len(different) == (0 if name in ("bilinear", "none") else 1)


def test_unknown_ablations_are_refused():
    with pytest.raises(ValueError, match="Known: unpool, bilinear"):
        read("ablation", "bicubic")
