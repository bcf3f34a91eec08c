"""docs/getting-started.md, followed by somebody with a folder of their own, in a shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import DOCS, blocks_of
from stand_ins import write_voc


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path):
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", 240, seed=9, size=(64, 96))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    outputs = []
    for block in blocks_of(DOCS / "getting-started.md"):
        command = ["bash", "-e", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        run = subprocess.run(
            [*command, block.code], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{block.code}\n{run.stdout}\n{run.stderr}"
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
