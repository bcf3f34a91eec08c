"""Reports and model cards show class names as they are, whatever is in them."""

import html
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import METRIC_NAMES, class_table, coco_metrics
from tfdetr_keras.evaluation.panoptic_quality import PanopticQuality
from tfdetr_keras.export.model_card import model_card
from tfdetr_keras.training.markdown import escaped
from tfdetr_keras.training.run_folder import RunFolder, metric_tables
from tfdetr_keras.training.settings import Settings

NAMES = ["<img src=x onerror=alert(1)>", "a | b", "`c` *d* [e](http://f) \\ &amp;", "traffic_light", "grün 猫"]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30))
def test_an_escaped_text_is_one_cell_and_no_markup(text):
    found = escaped(text)
    assert len(found.splitlines()) <= 1
    without_entities = re.sub(r"&#\d+;", "", found)
    assert not set(without_entities) & set("&<>|`*[]\\")
    assert html.unescape(found) == " ".join(text.splitlines())


def test_plain_names_stay_plain():
    assert escaped("traffic_light, grün 猫 (2)") == "traffic_light, grün 猫 (2)"


@pytest.fixture
def run(tmp_path):
    """A run's folder as it is read: what it is and its best metrics."""
    folder = RunFolder(tmp_path / "run")
    model = td.from_pretrained("detr-tiny")
    folder.create("detr-tiny", NAMES, Settings.of({}), model, {"training": "8 images"}, None, {})
    values = {name: 0.5 for name in METRIC_NAMES}
    values |= {f"{name}_per_class": dict.fromkeys(NAMES, 0.25) for name in ("AP", "AP50")}
    folder.write_best(values, 0)
    return folder, model


def rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_report_and_model_card(run):
    folder, model = run
    folder.write_report([{"loss": 1.0}])
    report = (folder.path / "report.md").read_text(encoding="utf-8")
    card = model_card(folder, model, "owner/name", dataset="<b>my</b> set")
    for text in (report, card):
        assert "<img" not in text
        assert "<b>" not in text.split("---", 2)[-1]
        assert "traffic_light" in text
        assert "http://f)" in html.unescape(text)
        for name in NAMES:
            (row,) = [row for row in rows(text) if html.unescape(row.split(" | ")[0][2:]) == name]
            assert row.count("|") == 4
    assert (folder.path / "class_names.txt").read_text(encoding="utf-8").splitlines() == NAMES


def test_a_name_with_a_line_break_is_one_line(tmp_path):
    folder = RunFolder(tmp_path / "run")
    names = ["a\nb", "c\u2028d", "e\tf "]
    folder.create("detr-tiny", names, Settings.of({}), td.from_pretrained("detr-tiny"), {}, None, {})
    assert (folder.path / "class_names.txt").read_text(encoding="utf-8").splitlines() == ["a b", "c d", "e f"]


def test_two_classes_of_one_name_have_a_row_each():
    """The first is found, the second missed."""
    box = np.array([[0, 0, 50, 50.0]])
    truth = [{"image_id": number, "boxes": box, "labels": np.array([number])} for number in (0, 1)]
    found = [{**truth[0], "scores": np.ones(1)}]
    metrics = coco_metrics(truth, found, ["car", "car"])
    assert metrics["AP"] == pytest.approx(0.5)
    assert class_table(metrics) == [("car", pytest.approx(1), pytest.approx(1)), ("car (2)", 0, 0)]
    assert sum(line.startswith("| car") for line in metric_tables(metrics)) == 2
    assert json.loads(json.dumps(metrics)) == metrics


def test_two_classes_of_one_name_have_a_panoptic_quality_each():
    assert PanopticQuality(["car", "car"], [True, True]).result()["per_class"].keys() == {"car", "car (2)"}
