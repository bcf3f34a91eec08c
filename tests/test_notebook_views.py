"""How runs, summaries and records look when they are printed or shown in a notebook."""

import re

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras import data
from tfdetr_keras.data.summary import Spread, Summary
from tfdetr_keras.training.run_folder import RunFolder

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def texts(html):
    return re.findall(r">([^<>]+)<", html)


def summary(names=("cat", "<b>dog</b>"), left_out=None):
    return Summary(
        class_names=tuple(names),
        images=3,
        empty_images=1,
        objects=10 * len(names),
        crowds=2,
        class_counts=tuple([10] * len(names)),
        most_objects=8,
        heights=Spread(10, 20, 30),
        widths=Spread(11, 21, 31),
        size_counts={"small": 1, "medium": 2, "large": 3},
        with_masks=None,
        left_out=left_out,
        noticed=None,
    )


def test_a_summary():
    one = summary(left_out={"unreadable images": ["<i>a.jpg</i>: cut off"]})
    assert repr(one) == "<Summary: 3 images, 20 objects of 2 classes, 1 left out>"
    html = one._repr_html_()
    assert "<b>dog" not in html
    assert "<i>a.jpg" not in html
    assert {
        "&lt;b&gt;dog&lt;/b&gt;",
        "10",
        "50%",
        "1 unreadable images, e.g. &lt;i&gt;a.jpg&lt;/i&gt;: cut off",
    } <= set(texts(html))
    many = summary([f"class {number}" for number in range(80)])._repr_html_()
    assert "… 60 more" in many
    assert many.count("class ") == 20


def test_a_summary_of_a_set():
    records, names = data.load_shapes(3, size=(48, 64))
    found = data.summarize(records, names)
    assert repr(found).startswith(f"<Summary: 3 images, {found.objects} objects of 3 classes")
    assert {"circle", "square", "triangle"} <= set(texts(found._repr_html_()))


def test_records(tmp_path):
    """As notebooks find the method: an attribute of the dataset. `repr` of it is TensorFlow's."""
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    records, _ = data.load_images(tmp_path, on_error="skip")
    assert repr(records.reader).startswith("<Reader of 2 images, on_error='skip', <Tally: 0 left out")
    assert len(list(records)) == 1
    assert repr(records.tally) == "<Tally: 1 left out, 0 noticed>"
    html = records._repr_html_()
    assert "Records of 2 images" in html
    assert {"boxes", "float32", "[·, 4]"} <= set(texts(html))
    assert any("b.png" in text for text in texts(html))
    assert len(list(records.take(1).map(lambda record: record["image"]))) == 1


def test_notebooks_find_it():
    formatters = pytest.importorskip("IPython.core.formatters")
    records, _ = data.load_shapes(2)
    assert "Records of 2 images" in formatters.HTMLFormatter()(records)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "<run>")
    folder.path.mkdir()
    (folder.path / "config.json").write_text('{"settings": {"epochs": 5}, "class_names": ["cat"]}')
    return folder


def write_metrics(run):
    values = {name: 0.25 for name in METRICS}
    classes = {"AP_per_class": {"<b>cat</b>": 0.125}, "AP50_per_class": {"<b>cat</b>": 0.75}}
    run.write_best({**values, **classes}, 1)


def test_a_run(run):
    assert repr(run) == f"<RunFolder {str(run.path)!r}: 0 of 5 epochs>"
    run.write_log([{"loss": 2.5}, {"loss": 1.25}])
    assert repr(run).endswith("2 of 5 epochs>")
    assert {"loss", "1.25"} <= set(texts(run._repr_html_()))
    write_metrics(run)
    assert repr(run).endswith("2 of 5 epochs, best AP 0.250 in epoch 2>")
    run.write_curves([{"loss": 2.5}, {"loss": 1.25}])
    html = run._repr_html_()
    assert {"AP75", "0.250", "&lt;b&gt;cat&lt;/b&gt;", "0.750"} <= set(texts(html))
    assert "<run>" not in html
    assert html.count("<img") == 1
    assert len(html) < 80_000


@pytest.mark.parametrize("content", [None, "{", "[]", '{"settings": null}'])
def test_no_run_or_a_damaged_one(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert repr(RunFolder(tmp_path)).endswith("no training run, or none that can be read>")
    assert "no training run" in RunFolder(tmp_path)._repr_html_()
