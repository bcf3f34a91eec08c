"""README.md's programs and commands, each as a user copies it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from code_blocks import REPOSITORY, RUN, blocks_of, run_page
from own_process import in_own_process
from stand_ins import CLASSES, write_coco, write_images

import tfdetr_keras as td

README = REPOSITORY / "README.md"
# They set up an environment and run all tests.
LEFT_OUT = ("make ", "pip install")
LINES_LEFT_OUT = [
    "pip install .",
    "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "pip install '.[port]'",
    "make demo",
    "make test",
]
# Each block is another person's: what an earlier one wrote under these names is no concern of the next.
WRITTEN = ("run", "run-shapes", "served", "served-detector", "found")


def furnish(workplace):
    """Puts into the workplace everything else that the README speaks of."""
    # Few images, for fifty epochs at 800 × 1333.
    write_coco(workplace / "photos", workplace / "train.json", 8)
    write_images(workplace / "photos" / "new", 2)
    write_coco(workplace / "images", workplace / "annotations.json", 8)
    shutil.copy(workplace / "annotations.json", workplace / "held_out.json")


@pytest.mark.slow
def test_every_block_runs_as_written(workplace):
    in_own_process(run_readme, workplace)


def run_readme():
    """Runs all of it in the current folder."""
    folder = Path.cwd()
    furnish(folder)
    namespace = {"__name__": "README"}
    seen = []

    def before(block):
        """Looks at what the block before this one left, and clears the table."""
        if seen:
            check(seen[-1].code, folder, namespace)
        seen.append(block)
        for name in WRITTEN:
            shutil.rmtree(folder / name, ignore_errors=True)

    run_page(README, namespace, before, LEFT_OUT)
    check(seen[-1].code, folder, namespace)
    blocks = [block for block in blocks_of(README) if block.language in RUN]
    left_out = "".join(block.code for block in blocks if block not in seen).splitlines()
    assert [line.split("#")[0].strip() for line in left_out] == LINES_LEFT_OUT
    assert set(CHECKS) <= {key for block in seen for key in CHECKS if key in block.code}


def check(code, folder, names):
    """What is to come of a block, told by a piece of its code."""
    for piece, look in CHECKS.items():
        if piece in code:
            look(folder, names)


def _fine_tuned(folder, names):
    assert names["model"].id2label == dict(enumerate(CLASSES))
    assert (folder / "run-shapes" / "report.md").is_file()
    assert names["run"].metrics["AP50"] > 0.05  # five short epochs; before them it is 0


def _on_the_command_line(folder, names):
    assert (folder / "run" / "best.keras").is_file()
    assert (folder / "found" / "detections.json").is_file()
    assert (folder / "served" / "saved_model.pb").is_file()


def _plain_keras(folder, names):
    assert np.isfinite(names["model"].history.history["val_AP"]).all()
    assert (folder / "detector.keras").is_file()


def _looked_at(folder, names):
    assert isinstance(names["found"], td.Detections)
    assert (folder / "attention.png").is_file()
    assert (folder / "served-detector" / "saved_model.pb").is_file()


CHECKS = {
    "td.fit_detector(": _fine_tuned,
    "tfdetr train": _on_the_command_line,
    "model.fit(": _plain_keras,
    "draw_attention(": _looked_at,
    "predict photo.jpg": lambda folder, names: json.loads((folder / "found" / "detections.json").read_text()),
}
