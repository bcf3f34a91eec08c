"""`tfdetr evaluate` and `predict` with a model of every member of the family write what the functions give."""

import dataclasses
import json

import numpy as np
import pytest
from members import of_members
from PIL import Image
from ports import gentle

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.evaluation.coco import evaluate_detections

pytestmark = pytest.mark.slow

SIZE, NAMES = (32, 64), ("circle", "square", "triangle")
SHAPES = ["--data", "shapes", "--count", "4", "--drawn-size", "24", "32", "--drawn-seed", "5"]


@of_members()
def test_evaluate_and_predict_write_what_the_functions_give(member, tmp_path):
    fields = {"num_classes": 3, "id2label": dict(enumerate(NAMES)), **member.of_32_pixels}
    config = dataclasses.replace(member.config, **fields)
    model = gentle(dataclasses.replace(member, config=config))
    model.save(tmp_path / "model.keras")
    options = ["--model", str(tmp_path / "model.keras"), "--size", *map(str, SIZE), "--out", str(tmp_path / "results")]

    assert main(["evaluate", *SHAPES, *options]) == 0
    records, _ = td.data.load_shapes(4, 5, NAMES, (24, 32))
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics.items() >= evaluate_detections(model, records, NAMES, SIZE).items()

    (tmp_path / "images").mkdir()
    for number, record in enumerate(records.as_numpy_iterator()):
        Image.fromarray(record["image"]).save(tmp_path / "images" / f"{number}.png")
    options[-1] = str(tmp_path / "found")
    assert main(["predict", str(tmp_path / "images"), *options, "--threshold", "0"]) == 0
    written = json.loads((tmp_path / "found" / "detections.json").read_text())
    expected = list(td.detect(model, td.data.load_images(tmp_path / "images")[0], SIZE, threshold=0.0))
    assert all(len(found["scores"]) > 3 for found in expected)
    for image, found in zip(written, expected, strict=True):
        rows = image["detections"]
        assert [row["class"] for row in rows] == [NAMES[label] for label in found["labels"]]
        np.testing.assert_allclose([row["score"] for row in rows], found["scores"], rtol=1e-5)
        np.testing.assert_allclose([row["box"] for row in rows], found["boxes"], rtol=1e-5, atol=1e-4)
        assert all(("segmentation" in row) == member.case.has_masks for row in rows)
