"""The Python of docs/extending.md, run as the page has it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxseg
from jaxseg.training import run
from jaxseg.utils import registry

PAGE = Path(__file__).parent.parent / "docs/extending.md"


@pytest.fixture(scope="module")
def page():
    """What the page defines; nothing that it registers outlives the tests."""
    tables = registry._REGISTERED
    registry._REGISTERED = {kind: dict(table) for kind, table in tables.items()}
    names = {"__name__": "extending"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    registry._REGISTERED = tables


def test_every_kind_has_its_section(page):
    for kind in registry.KINDS:
        assert f'@jaxseg.register("{kind}", "my_{kind}")' in PAGE.read_text()
        assert f"my_{kind}" in registry.names(kind)


def test_the_decoder_takes_the_place_of_the_other_components(page):
    model = jaxseg.create_model(
        "encoder_decoder", 5, encoder="my_encoder", decoder="my_decoder"
    )
    image = jnp.zeros((1, 45, 60, 3))
    logits, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)
    )
    assert logits.shape == (1, 45, 60, 5)


def test_model_loss_data_set_and_tracker_train(page, tmp_path):
    config = page["config"]
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.train.steps = config.train.batch_size = config.eval.batch_size = 2
    config.eval.overlays = 0
    config.parallel.data = 1
    run(config, str(tmp_path / "run"), [page["StopWhenGood"](0.0)])
    assert "'val_miou'" in (tmp_path / "run/numbers.txt").read_text()
    assert jaxseg.load(tmp_path / "run")[2].class_names == ("dark", "light")
