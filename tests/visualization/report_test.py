"""The page's data, the text that must stay text, and the page in a browser."""

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import cli
from jaxseg.checkpoints.known_data import remember_data
from jaxseg.checkpoints.run import load, read_metadata, save
from jaxseg.data import read_image
from jaxseg.inference.predictor import Predictor
from jaxseg.metadata import RunMetadata
from jaxseg.metrics import Calibration, Confusion, ImageIoU
from jaxseg.models import create_model
from jaxseg.ops.image_normalization import Normalization
from jaxseg.visualization import report
from jaxseg.visualization.overlays import colorize

HOSTILE = "</script><img src=x onerror=alert(1)><!--"
METADATA = RunMetadata(
    model={"name": "segnet_basic", "num_classes": 3, "width": 4},
    class_names=("road", HOSTILE, "never"),
    palette=((128, 64, 128), (0, 90, 0), (255, 0, 255)),
    normalization=Normalization((120.0,) * 3, (60.0,) * 3),
    config={"note": HOSTILE},
    versions={"jaxseg": "0"},
)
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
LOG = [
    {"step": 10, "loss": 2.0, "learning_rate": 0.1},
    {"step": 20, "loss": None, "learning_rate": 0.05},
    {"step": 20, "val_miou": 0.5, "val_pixel_accuracy": 0.7},
    {"step": 30, "loss": 1.0, "learning_rate": 0.01},
]


def images_of(*hits, k=3):
    """Images of one class, a given number of whose 10 pixels are right."""
    counts = np.zeros((len(hits), k, 3), int)
    for i, hit in enumerate(hits):
        counts[i, 0] = 10, hit, hit
    return ImageIoU(np.arange(len(hits)), counts)


@pytest.fixture
def page():
    confusion = Confusion.of(PREDICTION, TRUTH, 3)
    example = report.Example(
        "best", f"a{HOSTILE}", 0.5, np.full((2, 4, 3), 99, np.uint8), TRUTH, PREDICTION
    )
    count, correct = np.zeros(15, int), np.zeros(15, int)
    count[[7, 14]], correct[[7, 14]] = (3, 4), (1, 4)
    return report.render(
        "{{data}} <b>run</b>",
        {"mIoU": "50%", "data": HOSTILE},
        METADATA,
        log=LOG,
        confusion=confusion,
        images=ImageIoU.of(7, confusion),
        names=[f"a{HOSTILE}"],
        examples=[example],
        calibration=Calibration(count, count * 0.5, correct),
        boundary={"road": 0.25, HOSTILE: 0.75, "never": math.nan},
    )


class Elements(HTMLParser):
    """All elements of a page, and the text of some."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._open = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open = dict(attributes).get("id", tag)

    def handle_data(self, text):
        self.text[self._open] = self.text.get(self._open, "") + text

    def handle_endtag(self, tag):
        self._open = None


def data_of(page):
    return json.loads(Elements(page).text["data"])


def picture(uri):
    assert uri.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def test_best_median_and_worst_by_hand():
    images = images_of(5, 9, 1, 7, 3, 8, 2)
    assert report.choose_examples(images, per_kind=2) == [
        ("best", 1),
        ("best", 5),
        ("median", 0),
        ("median", 4),
        ("worst", 6),
        ("worst", 2),
    ]
    assert report.choose_examples(images, per_kind=1) == [
        ("best", 1),
        ("median", 0),
        ("worst", 2),
    ]


def test_few_images_and_void_ones():
    assert report.choose_examples(images_of(5, 9, 1)) == [
        ("best", 1),
        ("median", 0),
        ("worst", 2),
    ]
    assert report.choose_examples(images_of(5, 9)) == [("best", 1), ("worst", 0)]
    assert report.choose_examples(images_of(5)) == [("best", 0)]
    nothing = ImageIoU(np.arange(2), np.zeros((2, 3, 3), int))
    assert report.choose_examples(nothing) == []


def test_errors_are_black_and_void_is_hatched():
    errors = report.error_map(TRUTH, PREDICTION)
    np.testing.assert_array_equal(errors[0], [255, 0, 255, 255])
    np.testing.assert_array_equal(errors[1, :3], [255, 255, 0])
    void = report.error_map(np.full((9, 9), 255), np.zeros((9, 9)))
    assert set(np.unique(void)) == {150, 225}
    assert (void[0, :3] == void[0, 0]).all()
    assert (void[0, 3:6] != void[0, 0]).all()
    np.testing.assert_array_equal(void[1:, :-1], void[:-1, 1:])


def test_text_stays_text(page):
    elements = Elements(page)
    assert "img" not in elements.tags
    assert "b" not in elements.tags
    assert elements.tags.count("script") == 2
    assert elements.text["title"] == "{{data}} <b>run</b>"
    data = data_of(page)
    assert data["classes"][1]["name"] == HOSTILE
    assert data["examples"][0]["name"] == f"a{HOSTILE}"
    assert data["metadata"] == json.loads(json.dumps(METADATA.to_json()))
    assert dict(data["facts"])["data"] == HOSTILE


def test_nothing_is_fetched(page):
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {
        "http://www.w3.org/2000/svg"
    }


def test_scores_of_classes(page):
    data = data_of(page)
    assert data["confusion"] == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    road, other, never = data["classes"]
    assert road == {
        "name": "road",
        "color": "#804080",
        "iou": 3 / 5,
        "accuracy": 3 / 4,
        "fraction": 4 / 7,
        "boundary": 0.25,
    }
    assert other["iou"] == 2 / 4
    assert never["iou"] is never["accuracy"] is never["boundary"] is None


def test_curves(page):
    charts = {chart["title"]: chart for chart in data_of(page)["charts"]}
    assert list(charts) == [
        "Loss",
        "Learning rate",
        "Validation",
        "mIoU of each image, sorted",
        "Reliability",
    ]
    assert charts["Loss"]["x"] == [10, 20, 30]
    assert charts["Loss"]["series"][0]["y"] == [2.0, None, 1.0]
    miou, pixels, mean = charts["Validation"]["series"]
    assert (miou["y"], pixels["y"], mean["y"]) == ([0.5], [0.7], [None])
    sure, right = charts["Reliability"]["x"], charts["Reliability"]["series"][0]["y"]
    assert (sure, right) == ([0.5, 0.5], [1 / 3, 1.0])
    assert charts["Reliability"]["notes"] == [
        "42.9% of the pixels",
        "57.1% of the pixels",
    ]


def test_long_records_are_thinned(monkeypatch):
    monkeypatch.setattr(report, "MAX_POINTS", 4)
    log = [{"step": i, "loss": float(i)} for i in range(1, 10)]
    (loss,) = report._curves(log)
    assert loss["x"] == loss["series"][0]["y"] == [1, 4, 7]


def test_pictures_are_what_they_say(page):
    (example,) = data_of(page)["examples"]
    image, truth, prediction, errors = map(picture, example["layers"])
    palette = METADATA.palette
    np.testing.assert_allclose(image, 99, atol=2)
    np.testing.assert_array_equal(truth, colorize(TRUTH, palette))
    np.testing.assert_array_equal(prediction, colorize(PREDICTION, palette))
    np.testing.assert_array_equal(errors, report.error_map(TRUTH, PREDICTION))
    names = [name for name, _ in example["present"]]
    assert names == ["road", HOSTILE, "void"]


def test_large_and_gray_images_are_shown_smaller(page):
    large = np.zeros((700, 1400), np.uint8)
    example = report.Example("best", "a", 1.0, large[..., None], large, large)
    shown = report._example(example, METADATA)
    assert shown["size"] == (640, 320)
    assert {picture(uri).shape[:2] for uri in shown["layers"]} == {(320, 640)}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An untrained net, and four images for it in the folder `data`."""
    monkeypatch.setattr(
        "jaxseg.parallel.compilation.enable_compilation_cache", lambda: None
    )
    rng = np.random.default_rng(0)
    for kind, channels in (("images", (3,)), ("masks", ())):
        (tmp_path / "data/val" / kind).mkdir(parents=True)
        for i in range(4):
            array = rng.integers(0, 256 if channels else 3, (32, 32, *channels))
            path = tmp_path / "data/val" / kind / f"{i}.png"
            Image.fromarray(array.astype(np.uint8)).save(path)
    model = METADATA.model
    like = jax.eval_shape(
        lambda: create_model(**model).init(
            jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
        )
    )
    variables = jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape), like)
    # Variances are positive.
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    variables = jax.tree.map(np.float32, variables)
    prepared = {"dataset": "folder", "root": "", "prepared_dir": str(tmp_path / "p")}
    save(
        tmp_path / "run",
        variables,
        model=model,
        normalization=METADATA.normalization,
        class_names=["class_0", "class_1", "class_2"],
        palette=METADATA.palette,
        data=prepared,
    )
    remember_data(read_metadata(tmp_path / "run"))
    return tmp_path / "run"


def test_the_page_survives_odd_metrics(workdir, tmp_path):
    lines = [
        '{"step": 1, "loss": "high"}',
        '{"step": 2, "loss": NaN, "learning_rate": [1]}',
        '{"step": 3, "loss": 1' + "0" * 400 + ', "val_miou": null}',
        '{"step": 100000000000000000, "loss": 1}',
        "null",
        '{"step": 4, "loss": 0.5}',
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    output = tmp_path / "report.html"
    arguments = ["report", f"--workdir={workdir}", f"--data-root={tmp_path / 'data'}"]
    assert cli.main([*arguments, f"--output={output}"]) == 0
    loss = data_of(output.read_text())["charts"][0]
    assert loss["x"] == [1, 2, 3, 4]
    assert loss["series"][0]["y"] == [None, None, None, 0.5]


@pytest.mark.parametrize("damage", ["null", "{", '{"a": 1, "a": 1}', "[" * 100_000])
def test_a_damaged_evaluation_is_named(workdir, tmp_path, damage, capsys):
    (workdir / "report.json").write_text(damage)
    output = tmp_path / "report.html"
    arguments = ["report", f"--workdir={workdir}", f"--data-root={tmp_path / 'data'}"]
    assert cli.main([*arguments, f"--output={output}"]) == 1
    assert "report.json is damaged" in capsys.readouterr().err
    assert not output.exists()


def test_the_command(workdir, tmp_path, capsys):
    output = tmp_path / "new" / "report.html"
    arguments = ["report", f"--workdir={workdir}", f"--data-root={tmp_path / 'data'}"]
    assert cli.main([*arguments, f"--output={output}"]) == 0
    assert f"MB written to {output}" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]

    data = data_of(output.read_text())
    predict = Predictor(*load(workdir))
    assert len(data["examples"]) == 3
    for example in data["examples"]:
        image, label = (
            tmp_path / "data/val" / kind / f"{example['name']}.png"
            for kind in ("images", "masks")
        )
        prediction, truth = predict(read_image(image)), np.asarray(Image.open(label))
        shown = picture(example["layers"][2])
        np.testing.assert_array_equal(shown, colorize(prediction, METADATA.palette))
        assert len(np.unique(prediction)) > 1
        confusion = Confusion.of(prediction, truth, 3)
        assert example["miou"] == ImageIoU.of(0, confusion).miou()[0]
    assert np.sum(data["confusion"]) == 4 * 32 * 32
    titles = [chart["title"] for chart in data["charts"]]
    assert titles == ["mIoU of each image, sorted", "Reliability"]

    assert cli.main([*arguments, f"--output={tmp_path}"]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_boundaries_are_shown_where_this_very_run_was_evaluated(workdir, tmp_path):
    data = [f"--workdir={workdir}", f"--data-root={tmp_path / 'data'}"]
    tiled = "--tile=24x24"

    def shown(*options):
        output = tmp_path / "report.html"
        assert cli.main(["report", *data, *options, f"--output={output}"]) == 0
        read = data_of(output.read_text())
        return [entry.get("boundary") for entry in read["classes"]], dict(read["facts"])

    assert cli.main(["evaluate", *data, tiled, "--metrics=boundary"]) == 0
    measured = json.loads((workdir / "report.json").read_text())["boundary"]["either"]
    by_class, facts = shown(tiled)
    assert by_class == list(measured["by_class"].values()) and all(by_class)
    assert facts["boundary F1"] == f"{measured['boundary_f1']:.1%}"
    # Scored in another way, or not measured at all.
    by_class, facts = shown()
    assert by_class == [None] * 3 and "boundary F1" not in facts
    assert cli.main(["evaluate", *data]) == 0
    assert shown()[0] == [None] * 3


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, where it and selenium are installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


def test_in_a_browser(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page)
    browser.set_window_size(500, 844)
    browser.get(path.as_uri())
    right, down, home = "\ue014", "\ue015", "\ue011"

    def find(selector):
        return browser.find_element("css selector", selector)

    def opacities():
        layers = browser.find_elements("css selector", ".stack img")
        return [float(layer.value_of_css_property("opacity")) for layer in layers]

    assert not browser.get_log("browser")
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= innerWidth"
    )
    assert HOSTILE in find("tbody").text
    assert find("h1").text == "{{data}} <b>run</b>"

    slider = find("input[type=range]")
    slider.send_keys(right * 6)
    assert opacities() == [1, 1, 0.5, 0]
    assert slider.get_attribute("aria-valuetext") == "50% from truth to prediction"
    slider.send_keys(right * 6)
    assert opacities() == [1, 1, 1, 1]
    find(".stops button:nth-child(2)").send_keys(" ")
    assert opacities() == [1, 1, 0, 0]

    loss = find(".chart")
    loss.send_keys(home)
    assert loss.get_attribute("aria-valuetext") == "step 10, loss 2"
    loss.send_keys(right)
    assert loss.get_attribute("aria-valuetext").startswith("step 20, loss")

    find("#matrix svg").send_keys(right)
    readout = find("#matrix output").text
    assert readout == f"road predicted as {HOSTILE}: 25.00% (1 pixels)"

    # The picture's middle is row 1, column 2.
    find(".stack").send_keys(home)
    assert find("#examples output").text == "truth road, prediction road"
    find(".stack").send_keys(right * 20 + down)
    assert find("#examples output").text.startswith("truth ")

    titles = [cell.text for cell in browser.find_elements("css selector", "thead th")]
    assert titles == ["class", "IoU", "accuracy", "boundary F1", "pixels"]
    find("th:nth-child(2) button").send_keys(" ")
    first = [
        row.text.split()[0] for row in browser.find_elements("css selector", "tbody tr")
    ]
    assert first[0] == "road" and first[2] == "never"
    find("th:nth-child(2) button").send_keys(" ")
    rows = browser.find_elements("css selector", "tbody tr")
    assert rows[1].text.startswith("road") and rows[2].text.startswith("never")
