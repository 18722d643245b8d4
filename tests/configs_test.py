"""Every config builds what it names, and none has a key that no builder knows."""

import importlib
from pathlib import Path

import pytest

from configs import ablation, default, fcn_vgg16_camvid_staged
from jaxseg.models import create_model
from jaxseg.training.optimizer import create_optimizer, create_schedule

CONFIGS = Path(default.__file__).parent
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def _check(config):
    model = config.model.to_dict()
    create_model(num_classes=11, **model.pop("parts"), **model)
    schedule = create_schedule(steps=config.train.steps, **config.schedule)
    create_optimizer(schedule=schedule, **config.optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_configs_build(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.is_locked
    assert _keys(config) == _keys(default.get_config())
    _check(config)


def _keys(config):
    """The names of a config's sections and keys."""
    return {
        section: sorted(value) if hasattr(value, "keys") else None
        for section, value in config.items()
    }


def test_the_staged_config_is_the_three_configs():
    config = fcn_vgg16_camvid_staged.get_config()
    for name, changes in config.stages:
        alone = importlib.import_module(f"configs.{name}_vgg16_camvid").get_config()
        stage = config.copy_and_resolve_references()
        stage.stages = ()
        with stage.unlocked():
            stage.update_from_flattened_dict(changes)
        assert stage.to_dict() == alone.to_dict()


@pytest.mark.parametrize("part", ablation.PARTS)
def test_ablations_differ_in_one_part(part):
    config = ablation.get_config(part)
    _check(config)
    parts = config.model.kwargs.to_dict()
    base = ablation.get_config("bilinear").model.kwargs.to_dict()
    different = {key for key in base if base[key] != parts[key]}
    assert len(different) == (0 if part in ("bilinear", "none") else 1)


def test_unknown_ablations_are_refused():
    with pytest.raises(ValueError, match="Known: unpool, bilinear"):
        ablation.get_config("bicubic")
