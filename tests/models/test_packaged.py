"""The checkpoint inside the package: small enough, the same in PyTorch, and as good as its card says."""

from pathlib import Path

import pytest

import tfdetr_keras as td
from port_weights.compare import compare
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import PRESETS
from tfdetr_keras.models.packaged import find_source, packaged_checkpoints

FOLDER = packaged_checkpoints()["detr-tiny"]
INPUT = {"size": (64, 64), "batch_size": 16, "pad_to": (64, 64)}


def test_size_and_architecture():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    config = td.DETR.from_pretrained("detr-tiny").config
    preset = PRESETS["detr-tiny"]
    assert (config.backbone.depths, config.backbone.channels) == (preset.backbone.depths, preset.backbone.channels)
    assert (config.d_model, config.num_queries) == (preset.d_model, preset.num_queries)
    assert list(config.id2label.values()) == ["circle", "square", "triangle"]


@pytest.mark.slow
def test_pytorch_reads_the_same_model_from_it(pytorch):
    rows, origin = compare("detr-tiny")
    assert "transformers" in origin
    assert all(row.agrees for row in rows)
    read = pytorch.call("models:read_folder", FOLDER)
    assert read["class"] == "DetrForObjectDetection"
    loading = read["loading"]
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_it_detects():
    records, names = td.data.load_shapes(64, seed=2, size=(48, 64))
    metrics = evaluate_detections(td.DETR.from_pretrained("detr-tiny"), records, names, **INPUT)
    assert metrics["AP50"] > 0.9
    assert metrics["AP"] > 0.65


@pytest.mark.slow
def test_it_is_as_good_as_its_card_says():
    records, names = td.data.load_shapes(1000, seed=2, size=(48, 64))
    metrics = evaluate_detections(td.DETR.from_pretrained("detr-tiny"), records, names, **INPUT)
    told = [*(metrics[name] for name in ("AP", "AP50", "AP75")), *(metrics["AP_per_class"][name] for name in names)]
    row = next(line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| 0."))
    assert told == pytest.approx([float(cell) for cell in row.strip("| ").split(" | ")], abs=2e-3)


def test_other_names_stand_for_themselves(tmp_path, monkeypatch):
    assert find_source("facebook/detr-resnet-50") == "facebook/detr-resnet-50"
    assert find_source({"a": 1}) == {"a": 1}
    monkeypatch.chdir(tmp_path)
    assert find_source("detr-tiny") == FOLDER
    Path("detr-tiny").mkdir()
    assert find_source("detr-tiny") == "detr-tiny"  # a folder at hand comes first
    Path("detr-tiny/best.keras").touch()
    assert find_source("detr-tiny") == Path("detr-tiny/best.keras")
