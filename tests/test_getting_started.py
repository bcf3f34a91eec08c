"""docs/getting-started.md, followed by somebody with a folder of their own, in a shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tfdetr_keras as td

PAGE = Path(__file__).parents[1] / "docs" / "getting-started.md"


def write_voc(folder, count):
    """Drawn shapes as a labelling tool keeps them."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir()
    records, names = td.data.load_shapes(count, seed=9, classes=["star", "cross", "ring"], size=(64, 96))
    for place, record in enumerate(records.as_numpy_iterator()):
        Image.fromarray(record["image"]).save(folder / "JPEGImages" / f"{place}.png")
        height, width = record["image"].shape[:2]
        objects = "".join(
            f"<object><name>{names[label]}</name><bndbox><xmin>{x1 + 1:.0f}</xmin><ymin>{y1 + 1:.0f}</ymin>"
            f"<xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in zip(record["labels"], record["boxes"], strict=True)
        )
        (folder / "Annotations" / f"{place}.xml").write_text(
            f"<annotation><filename>{place}.png</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path):
    write_voc(tmp_path, 240)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    outputs = []
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        command = ["bash", "-e", "-c", block] if language == "bash" else [sys.executable, "-c", block]
        run = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
        outputs.append(run.stdout)
    assert len(outputs) == 4
    assert (tmp_path / "look.png").is_file()
    assert "star" in outputs[0]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["AP50"] > 0.2
    assert (tmp_path / "run" / "report.md").is_file()
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert len(found) == 240
    [first] = [image for image in found if image["file"].endswith("/0.png")]
    # The served model, which has neither this package nor Keras' resize, names the same objects.
    assert len(outputs[-1].splitlines()) == len(first["detections"])
    for line in outputs[-1].splitlines():
        assert line.split()[0] in {"star", "cross", "ring"}
