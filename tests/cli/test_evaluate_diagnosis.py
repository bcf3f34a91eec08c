"""`tfdetr evaluate --plots` and `--keep-thresholds`, and what predict makes of the latter."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.cli import main

pytestmark = pytest.mark.usefixtures("without_tracing")
SHAPES = ["--data", "shapes", "--count", "8", "--drawn-size", "48", "64", "--drawn-seed", "2"]
NAMES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six drawn images as files, called by the time of day, with COCO's annotations."""
    folder = tmp_path_factory.mktemp("photographs")
    records, names = td.data.load_shapes(6, seed=2, size=(48, 64))
    images, annotations = [], []
    for number, record in enumerate(records.as_numpy_iterator()):
        name = f"{number}_{'night' if number % 3 else 'day'}.png"
        Image.fromarray(record["image"]).save(folder / name)
        height, width = record["image"].shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for (left, top, right, bottom), label in zip(record["boxes"].tolist(), record["labels"].tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def coco(folder):
    return ["--data", "coco", "--images", str(folder), "--annotations", str(folder / "annotations.json")]


def test_a_page_with_groups_of_files(photographs, tmp_path, capsys):
    command = ["evaluate", *coco(photographs), "--model", "detr-tiny", "--out", str(tmp_path), "--plots"]
    assert main([*command, "--group", "night=*_night.png", "--group", "day=*_day.png"]) == 0
    assert "wrote report.html, diagnosis.json, errors.png" in capsys.readouterr().out
    told = json.loads((tmp_path / "diagnosis.json").read_text())
    assert {name: one["images"] for name, one in told["groups"].items()} == {"night": 4, "day": 2}
    assert told["metrics"] == json.loads((tmp_path / "metrics.json").read_text())
    assert all(entry["title"].endswith(".png") for entry in told["worst_images"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plots"], "--plots needs --out"),
        (["--group", "a=b"], "--group is for the diagnosis: give --plots, too"),
        (["--out", "out", "--plots", "--group", "night"], "--group night: expected NAME=PATTERN"),
        (["--out", "out", "--plots", "--group", "a=x", "--group", "a=y"], "--group a is given twice"),
        (["--keep-thresholds"], "--keep-thresholds is for the folder of a run, which detr-tiny is not"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *SHAPES, "--model", "detr-tiny", *options]) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_group_without_files_is_refused(photographs, tmp_path, capsys):
    command = ["evaluate", *coco(photographs), "--model", "detr-tiny", "--out", str(tmp_path / "out"), "--plots"]
    assert main([*command, "--group", "rain=rain*"]) != 0
    assert "--group rain=rain*: no image matches, which are called like" in capsys.readouterr().err


def detections_of(out):
    return [one for image in json.loads((out / "detections.json").read_text()) for one in image["detections"]]


@pytest.mark.slow
def test_thresholds_are_kept_used_and_dropped(photographs, tmp_path, capsys):
    run, model = tmp_path / "run", ["--model", str(tmp_path / "run")]
    short = ["--from", "detr-tiny", "--size", "64", "64", "--pad-to", "64", "64", "--epochs", "1", "--batch-size", "4"]
    assert main(["train", *SHAPES, "--val-split", "0.5", *short, "--augmentation", "none", "--out", str(run)]) == 0
    assert main(["evaluate", *coco(photographs), *model, "--keep-thresholds"]) == 0
    assert f"kept thresholds with {run}: circle " in capsys.readouterr().out
    folder = td.training.RunFolder(run)
    assert list(folder.thresholds) == NAMES

    folder.keep_thresholds({"circle": 0.0, "square": 0.999999, "triangle": 0.3})
    assert main(["predict", str(photographs), *model, "--out", str(tmp_path / "kept")]) == 0
    found = detections_of(tmp_path / "kept")
    scores = {name: [one["score"] for one in found if one["class"] == name] for name in NAMES}
    assert min(scores["circle"]) < 0.3 < min(scores["triangle"])
    assert not scores["square"]
    assert main(["predict", str(photographs), *model, "--threshold", "0.5", "--out", str(tmp_path / "told")]) == 0
    assert min(one["score"] for one in detections_of(tmp_path / "told")) > 0.5

    for kind, name in (("saved-model", "served"), ("onnx", "model.onnx"), ("hub", "card")):
        assert main(["export", *model, "--format", kind, "--out", str(tmp_path / name)]) == 0
    (entry,) = [one for one in onnx.load(tmp_path / "model.onnx").metadata_props if one.key == "thresholds"]
    files = (tmp_path / "served/assets/thresholds.json", tmp_path / "card/thresholds.json")
    assert all(json.loads(text) == folder.thresholds for text in [entry.value, *(file.read_text() for file in files)])

    (run / "thresholds.json").write_text('{"circle": 50}')
    assert main(["predict", str(photographs), *model, "--out", str(tmp_path / "wrong")]) != 0
    assert "thresholds.json: the threshold of 'circle' must be at least 0 and below 1" in capsys.readouterr().err
    folder.write_best(folder.metrics | {"AP": 1.0}, epoch=1)
    assert folder.thresholds == {}


def test_a_model_takes_thresholds_by_class():
    records, _ = td.data.load_shapes(4, seed=2, size=(48, 64))
    images = [record["image"] for record in records.as_numpy_iterator()]
    model = td.from_pretrained("detr-tiny")
    everything = model.detect(images, threshold=0.0)
    limits = {"circle": 0.9, "square": 0.2}  # of triangles 0.5
    found = model.detect(images, threshold=limits)
    for one, all_of_it in zip(found, everything, strict=True):
        wanted = np.array([{**limits, "triangle": 0.5}[name] for name in all_of_it.names])
        np.testing.assert_array_equal(one.scores, all_of_it.scores[all_of_it.scores > wanted])
    with pytest.raises(
        ValueError, match="threshold has 'car', which is no class of the model: circle, square, triangle"
    ):
        model.detect(images, threshold={"car": 0.5})


def test_one_threshold_for_each_label():
    outputs = {"logits": np.zeros((1, 2, 4)), "pred_boxes": np.zeros((1, 2, 4))}
    with pytest.raises(ValueError, match="one for each of 3 labels, not 2"):
        td.post_process(outputs, [(10, 10)], threshold=[0.5, 0.5])
