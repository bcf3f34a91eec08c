"""The demo, on few images: what it does without PyTorch, and that it removes nothing before it can start."""

import json
import sys

import pytest

from port_weights import compare as comparing
from port_weights.hub import Commit
from tfdetr_keras import demo

pytestmark = pytest.mark.usefixtures("without_tracing")

OUTPUTS = ("logits", "pred_boxes")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    for name, value in {"HELD_OUT_IMAGES": 4, "TRAINING_IMAGES": 4, "BATCH_SIZE": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setitem(demo.RECIPE, "batch_size", 2)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_pytorch_the_rest_runs(monkeypatch, tmp_path, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert demo.run_demo(tmp_path / "out", steps=1) is True
    assert json.loads((tmp_path / "out" / "report.json").read_text())["parity"] is None
    [line] = [line for line in capsys.readouterr().out.splitlines() if "parity" in line]
    assert (
        line.split()
        == (
            "without parity: comparing needs the PyTorch side: pip install 'tfdetr-keras[port]' "
            f"(No module named '{missing}')"
        ).split()
    )


@pytest.mark.slow
def test_out_of_tolerance(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "compare", lambda source: ([comparing.Row(s, 1.0, 0.5) for s in OUTPUTS], "a stand-in"))
    assert demo.run_demo(tmp_path / "out", steps=1) is False
    assert json.loads((tmp_path / "out" / "report.json").read_text())["parity"] == {"logits": 1.0, "boxes": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"source": "absent.pth"}, "absent.pth: no such file or folder"),
        ({"source": "OUT"}, "lies in --out .*, which the demo overwrites"),
        ({"source": "OUT/best.keras"}, "lies in --out .*, which the demo overwrites"),
    ],
)
def test_a_start_that_fails_leaves_the_earlier_demo(tmp_path, options, message):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "best.keras", "report.md"):
        (out / name).write_text("{}")
    if "source" in options:
        options = {"source": options["source"].replace("OUT", str(out))}
    with pytest.raises(ValueError, match=message):
        demo.run_demo(out, **options)
    assert sorted(entry.name for entry in out.iterdir()) == ["best.keras", "config.json", "report.md"]


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file: name a folder"):
        demo.run_demo(tmp_path / "out", steps=1)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.slow
def test_the_hub_is_asked_once(monkeypatch, tmp_path):
    from tfdetr_keras.models.packaged import packaged_checkpoints

    asked = []

    def fetch(hub_id, revision=None):
        asked.append(hub_id)
        return Commit(hub_id, packaged_checkpoints()["detr-tiny"])

    monkeypatch.setattr("port_weights.hub.fetch", fetch)
    monkeypatch.setenv("TFDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert demo.run_demo(tmp_path / "out", steps=1, source="owner/detr")
    assert asked == ["owner/detr"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["source"] == "owner/detr"
