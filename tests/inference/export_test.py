import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from PIL import Image

from jaxseg import cli, save
from jaxseg.inference.export import export_network, verify, write
from jaxseg.inference.predictor import Predictor
from jaxseg.models import create_model
from tests.helpers import PALETTE, ConvNet, draw_image, make_metadata

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported.py"


def make(image_size=None, channels=3, model=None):
    """What `jaxseg.load` returns."""
    model = model or ConvNet()
    image = jnp.zeros((1, 64, 64, channels))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), image)
    metadata = make_metadata(channels=channels, image_size=image_size)
    return model, variables, metadata


def draw(count, height, width, channels):
    """Images, uint8 [count, height, width, channels]."""
    return np.stack([draw_image(height, width, channels, seed=i) for i in range(count)])


@pytest.mark.parametrize("image_size", [None, [16, 24]])
def test_any_batch_and_size_gives_the_predictor_s_classes(image_size):
    network = make(image_size)
    exported = export.deserialize(export_network(*network).serialize())
    predict = Predictor(*network)
    for shape in ((2, 37, 51, 3), (1, 12, 20, 3)):
        images = draw(*shape)
        classes = exported.call(images)
        assert classes.dtype == jnp.uint8
        np.testing.assert_array_equal(classes, [predict(image) for image in images])


def test_probabilities_are_those_of_the_classes():
    network = make()
    image = draw(1, 21, 19, 3)
    probabilities = export_network(*network, output="probabilities").call(image)
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, rtol=1e-5)
    classes = export_network(*network).call(image)
    np.testing.assert_array_equal(np.argmax(probabilities, axis=-1), classes)


def test_a_fixed_batch_and_size_take_no_other():
    network = make()
    exported = export_network(*network, batch=2, size=(16, 24))
    assert exported.call(draw(2, 16, 24, 3)).shape == (2, 16, 24)
    for shape in ((1, 16, 24, 3), (2, 16, 25, 3)):
        with pytest.raises(ValueError, match="mismatch"):
            exported.call(draw(*shape))


def test_platforms_that_are_not_here_can_be_exported_for():
    exported = export_network(*make(), platforms=("cpu", "cuda", "tpu"))
    exported = export.deserialize(exported.serialize())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.call(draw(1, 16, 16, 3)).shape == (1, 16, 16)


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("deeplab_largefov", {"width": 2, "hidden": 4}),
        ("deeplab_v3plus", {"encoder": "resnet18", "multi_grid": None}),
        ("encoder_decoder", {"encoder": "alexnet", "upsampler": "nearest"}),
        ("fc_resnet", {"depths": (1, 1, 1, 1)}),
        ("fcn8s", {"geometry": "released", "hidden": 8}),
        ("unet", {"width": 4}),
    ],
)
def test_networks_have_no_size_of_their_own(name, kwargs):
    model = create_model(name, 3, **kwargs)
    shape = export.symbolic_shape("b, 8 * h, 8 * w, 3")
    _, logits = jax.eval_shape(
        lambda image: (
            variables := model.init(
                jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
            ),
            model.apply(variables, image, train=False),
        ),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    assert logits.shape == (*shape[:3], 3)


@pytest.mark.parametrize(
    "image_size, output", [(None, "probabilities"), ([16, 24], "classes")]
)
def test_an_export_is_verified_against_its_network(image_size, output):
    model, variables, metadata = make(image_size)
    exported = export_network(model, variables, metadata, output=output)
    agreement = verify(exported, model, variables, metadata)
    if image_size is None:
        assert agreement.shapes == ((2, 96, 128, 3), (1, 75, 53, 3))
        assert agreement.pixels == 2 * 96 * 128 + 75 * 53
    else:
        assert agreement.shapes == ((2, 16, 24, 3), (1, 25, 29, 3), (1, 16, 13, 3))
    assert agreement.differing == 0 and agreement.error < 1e-5

    other = jax.tree.map(lambda leaf: leaf[..., ::-1], variables)
    with pytest.raises(ValueError, match=r"differs from the network: \d+ of \d+"):
        verify(exported, model, other, metadata)


def test_a_network_for_some_sizes_alone_asks_for_one():
    class Choosy(ConvNet):
        def __call__(self, image, *, train):
            if image.shape[1] % 16:
                raise ValueError("heights of 16 rows")
            return super().__call__(image, train=train)

    network = make(model=Choosy())
    with pytest.raises(ValueError, match=r"^net cannot .* any size and batch: heights"):
        export_network(*network)
    assert export_network(*network, size=(32, 24)).in_avals[0].shape[1] == 32
    with pytest.raises(ValueError, match="any batch: heights"):
        export_network(*network, size=(8, 24))
    with pytest.raises(ValueError, match=r"^heights of 16 rows"):
        export_network(*network, size=(8, 24), batch=1)


def test_unknown_platforms_and_outputs_are_named():
    with pytest.raises(ValueError, match=r"'gpu' is not one of cpu, cuda"):
        export_network(*make(), platforms=("cpu", "gpu"))
    with pytest.raises(ValueError, match=r"'logits' is not one of classes"):
        export_network(*make(), output="logits")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    network = make()
    exported = export_network(*network)
    path = tmp_path / "net.stablehlo"
    path.write_text("old")
    real = Path.write_bytes

    def fill(self, content):
        real(self, content[:7])
        if "json" in self.name:
            raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space"):
        write(path, exported, network[2])
    assert [p.name for p in tmp_path.iterdir()] == ["net.stablehlo"]
    assert path.read_text() == "old"


def test_the_two_files_are_two(tmp_path):
    network = make()
    with pytest.raises(ValueError, match=r"net.stablehlo"):
        write(tmp_path / "net.json", export_network(*network), network[2])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    model = {"name": "segnet_basic", "num_classes": 3, "width": 4}
    _, variables, metadata = make(model=create_model(**model))
    kept = ("class_names", "palette", "normalization")
    path = tmp_path_factory.mktemp("exported") / "run"
    save(path, variables, model=model, **{key: getattr(metadata, key) for key in kept})
    return path


def test_the_command_s_file_runs_without_jaxseg(workdir, capsys, monkeypatch):
    monkeypatch.setattr(
        "jaxseg.parallel.compilation.enable_compilation_cache", lambda: None
    )
    file = workdir.parent / "net.stablehlo"
    assert cli.main(["export", "--workdir", str(workdir), "--output", str(file)]) == 0
    assert "0 of 28551 pixels differ from the network" in capsys.readouterr().out
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["input"] == {"dtype": "uint8", "shape": ["b", "h", "w", 3]}
    assert about["output"] == {"dtype": "uint8", "shape": ["b", "h", "w"]}
    assert about["palette"] == [list(color) for color in PALETTE] and about["step"] == 0

    picture, classes = workdir.parent / "in.png", workdir.parent / "out.png"
    Image.fromarray(draw_image(33, 50)).save(picture)
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'jaxseg', 'flax', 'cv2'} & sys.modules.keys()"
    )
    code = f"import sys; sys.argv = sys.argv[1:]; {code}"
    command = [sys.executable, "-c", code, EXAMPLE, file, picture, "--output", classes]
    subprocess.run(
        [str(part) for part in command],
        check=True,
        cwd=workdir.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    predicted = workdir.parent / "predicted"
    command = ["predict", "--workdir", str(workdir), str(picture)]
    assert cli.main([*command, "--output", str(predicted)]) == 0
    with Image.open(classes) as ours, Image.open(predicted / "in.png") as theirs:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.getpalette()[:9] == np.ravel(PALETTE).tolist()
        assert len(np.unique(ours)) > 1


@pytest.mark.parametrize("size", ["360", "0x480", "360x", "axb"])
def test_a_size_is_height_by_width(size, capsys):
    command = ["export", "--workdir", "w", "--output", "o", "--size", size]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "height x width" in capsys.readouterr().err
