"""docs/getting-started.md, followed by somebody with the sets that it names, in a shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import DOCS, RUN, assert_lines, blocks_of

PAGE = DOCS / "getting-started.md"
THRESHOLD = 0.3  # of the page


def run_blocks(blocks, folder):
    """Runs blocks one after the other, compares the output that the page shows; gives what each of them printed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    outputs = []
    for block in blocks:
        if block.is_output:
            assert_lines(block, outputs[-1], PAGE)
        if block.language not in RUN:
            continue
        command = ["bash", "-e", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        run = subprocess.run(
            [*command, block.code], check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{block.code}\n{run.stdout}\n{run.stderr}"
        outputs.append(run.stdout)
    return outputs


def part_of_page(coco):
    """The blocks before the section on COCO's annotations, or those in it."""
    begins = PAGE.read_text().split("## The same with COCO's annotations")[0].count("\n")
    return [block for block in blocks_of(PAGE) if (block.line > begins) == coco]


def named_pictures(folder):
    """The pictures of `tfdetr predict` that the page speaks of."""
    return re.findall(rf"`({folder}/[^`]+\.png)`", PAGE.read_text())


def check_own_images(run, printed):
    """`tfdetr evaluate --model RUN` prints the figures of the images held back, which the run noted itself."""
    best = json.loads((run / "best.json").read_text())
    figures = dict(line.split() for line in printed.splitlines() if re.match(r"AP\w* +-?\d", line))
    for name in ("AP", "AP50", "AP75"):
        assert figures[name] == f"{best[name]:.4f}"


@pytest.mark.slow
def test_the_page_works_as_written_on_voc(tmp_path, bccd):
    (tmp_path / "BCCD").symlink_to(bccd)
    outputs = run_blocks(part_of_page(coco=False), tmp_path)
    assert len(outputs) == 4
    assert (tmp_path / "look.png").is_file()
    assert (tmp_path / "run" / "report.md").is_file()
    check_own_images(tmp_path / "run", outputs[2])
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert len(found) == 10
    assert len(named_pictures("found")) == 2
    for picture in named_pictures("found"):
        assert (tmp_path / picture).is_file()
    # The served model, which has neither this package nor Keras' resize, names the same objects.
    [first] = [image for image in found if image["file"].endswith("/BloodImage_00000.jpg")]
    certain = [row for row in first["detections"] if abs(row["score"] - THRESHOLD) > 0.02]
    assert abs(len(outputs[-1].splitlines()) - len(first["detections"])) <= len(first["detections"]) - len(certain)
    assert {line.split()[0] for line in outputs[-1].splitlines()} <= {"RBC", "WBC", "Platelets"}
    # Both have the cells: four epochs find some already.
    assert certain


@pytest.mark.slow
def test_the_page_works_as_written_on_coco(tmp_path, coco128):
    (tmp_path / "coco128").symlink_to(coco128)
    [output] = run_blocks(part_of_page(coco=True), tmp_path)
    assert (tmp_path / "look-coco.png").is_file()
    check_own_images(tmp_path / "run-coco", output)
    assert len(json.loads((tmp_path / "found-coco" / "detections.json").read_text())) == 2
    assert len(named_pictures("found-coco")) == 1
    for picture in named_pictures("found-coco"):
        assert (tmp_path / picture).is_file()
    assert (tmp_path / "served-coco" / "saved_model.pb").is_file()
