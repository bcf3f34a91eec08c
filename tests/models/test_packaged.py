"""The checkpoints inside the package: small enough, the same in PyTorch, and as good as their cards say."""

from pathlib import Path

import pytest

import tfdetr_keras as td
from port_weights.compare import compare
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import PRESETS
from tfdetr_keras.models.packaged import find_source, packaged_checkpoints

# Name → largest size of the folder in bytes, class in transformers.
PACKAGED = {
    "detr-tiny": (8_000_000, "DetrForObjectDetection"),
    "rt-detr-tiny": (12_000_000, "RTDetrForObjectDetection"),
    "rf-detr-tiny": (12_000_000, "RfDetrForObjectDetection"),
    "d-fine-tiny": (12_000_000, "DFineForObjectDetection"),
}
NAMES = ["circle", "square", "triangle"]
packaged = pytest.mark.parametrize("name", PACKAGED)


def test_all_of_them_are_looked_at():
    assert set(packaged_checkpoints()) == set(PACKAGED)


@packaged
def test_size_and_architecture(name):
    folder = packaged_checkpoints()[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= PACKAGED[name][0]
    config = td.from_pretrained(name).config
    preset = PRESETS[name]
    for field in ("depths", "channels", "width", "depth", "patch_size"):
        assert getattr(config.backbone, field, None) == getattr(preset.backbone, field, None)
    assert (config.d_model, config.num_queries) == (preset.d_model, preset.num_queries)
    assert config.preprocessing == preset.preprocessing
    assert list(config.id2label.values()) == NAMES


@pytest.mark.slow
@packaged
def test_pytorch_reads_the_same_model_from_it(pytorch, name):
    rows, origin = compare(name)
    assert "transformers" in origin
    assert all(row.agrees for row in rows)
    read = pytorch.call("models:read_folder", packaged_checkpoints()[name])
    assert read["class"] == PACKAGED[name][1]
    loading = read["loading"]
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@packaged
def test_it_detects(name):
    records, names = td.data.load_shapes(64, seed=2, size=(48, 64))
    metrics = evaluate_detections(td.from_pretrained(name), records, names, batch_size=16)
    assert metrics["AP50"] > 0.9
    assert metrics["AP"] > 0.65


@pytest.mark.slow
@packaged
def test_it_is_as_good_as_its_card_says(name):
    records, names = td.data.load_shapes(1000, seed=2, size=(48, 64))
    metrics = evaluate_detections(td.from_pretrained(name), records, names, batch_size=16)
    told = [*(metrics[name] for name in ("AP", "AP50", "AP75")), *(metrics["AP_per_class"][name] for name in names)]
    card = (packaged_checkpoints()[name] / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| 0."))
    assert told == pytest.approx([float(cell) for cell in row.strip("| ").split(" | ")], abs=2e-3)


def test_other_names_stand_for_themselves(tmp_path, monkeypatch):
    assert find_source("facebook/detr-resnet-50") == "facebook/detr-resnet-50"
    assert find_source({"a": 1}) == {"a": 1}
    monkeypatch.chdir(tmp_path)
    assert find_source("detr-tiny") == packaged_checkpoints()["detr-tiny"]
    Path("detr-tiny").mkdir()
    assert find_source("detr-tiny") == "detr-tiny"  # a folder at hand comes first
    Path("detr-tiny/best.keras").touch()
    assert find_source("detr-tiny") == Path("detr-tiny/best.keras")
