"""The code of README and documentation runs as it stands there.

Each page has a folder of its own with small stand-ins for what it speaks of; see `workplace`.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from code_blocks import DOCS, READ, REPOSITORY, RUN, blocks_of, run_page
from own_process import in_own_process
from stand_ins import (
    CLASSES,
    SMALL,
    prepared_builder,
    write_coco,
    write_coco_panoptic,
    write_csv,
    write_images,
    write_lines,
    write_voc,
    write_yolo,
)

import port_weights
import tfdetr_keras as td

# Pages whose code needs more than a folder with stand-ins have a test of their own.
ELSEWHERE = {
    "deploy.md": "tests/export/test_deploy_page.py",
    "getting-started.md": "tests/docs/test_getting_started.py",
    "scale.md": "tests/docs/test_scale_page.py",
}
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_there_to_be_read(name):
    for block in blocks_of(DOCS / name):
        assert block.language in RUN + READ, f"docs/{name}, line {block.line}: a block of {block.language!r}"


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_the_pages_own_tests_exist(test):
    assert (REPOSITORY / test).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in PAGES if name not in ELSEWHERE and any(b.language in RUN for b in blocks_of(DOCS / name))],
)
def test_the_page_runs_as_written(name, workplace):
    in_own_process(run_on_its_stage, workplace, name)


def run_on_its_stage(name):
    """Runs a page in the current folder, and checks what came of it."""
    folder = Path.cwd()
    stage, check = STAGES.get(name), CHECKS.get(name)
    names = stage(folder) or {} if stage else {}
    # Of this page each block is another person's, who begins a run of that name.
    before = (lambda block: shutil.rmtree("run")) if name == "fine-tuning.md" else None
    names, printed = run_page(DOCS / name, {"__name__": "page", **names}, before)
    if check:
        check(folder, names, printed)


def _fine_tuning(folder):
    """Few images, for many epochs; those of BCCD are squares, which fit on the canvas whichever side is the longer."""
    write_coco(folder / "photos", folder / "train.json", 8)
    write_images(folder / "photos" / "new", 2)
    images, annotations, lists = (folder / "BCCD" / name for name in ("JPEGImages", "Annotations", "ImageSets"))
    names = write_voc(images, annotations, 10, size=(64, 64))
    parts = {"val": ["0"], "test": ["4"]}  # which have all classes
    parts["train"] = [name for name in names if name not in ("0", "4")]
    for part, chosen in parts.items():
        write_lines(lists / "Main" / f"{part}.txt", chosen)


def _voc(folder):
    names = write_voc(folder / "JPEGImages", folder / "Annotations", 6)
    write_lines(folder / "ImageSets" / "Main" / "train.txt", names[:4])
    write_lines(folder / "ImageSets" / "Main" / "val.txt", names[4:])
    write_lines(folder / "classes.txt", CLASSES)


def _yolo(folder):
    write_yolo(folder / "shapes", "train", 6)
    write_yolo(folder / "shapes", "val", 3, seed=4)


def _coco_panoptic(folder):
    write_coco_panoptic(folder / "panoptic.json", folder / "segments", folder / "train.json")


def _segmentation(folder):
    """A panoptic set, and a model with a mask head under the name of the published one."""
    _coco_panoptic(folder)
    config = td.SegmentationConfig(**dataclasses.asdict(SMALL))
    port_weights.export(td.DETRForSegmentation(config), folder / "facebook" / "detr-resnet-50-panoptic")


# What a page needs beyond the workplace: each writes into its folder, and may give names that its programs know.
STAGES = {
    "data/coco.md": _coco_panoptic,
    "data/own.md": lambda folder: write_csv(folder / "photos", folder / "boxes.csv", 12),
    "data/tfds.md": lambda folder: prepared_builder(folder / "tensorflow_datasets", 6) and None,
    "data/voc.md": _voc,
    "data/yolo.md": _yolo,
    "evaluate.md": _segmentation,
    "fine-tuning.md": _fine_tuning,
    "predict.md": _segmentation,
    "segmentation.md": _segmentation,
    "share.md": lambda folder: shutil.copytree(folder / "run", folder / "me" / "detector") and None,
}


def _check_member(folder, names, printed):
    """The member was trained, and its port, its file and its SavedModel answer as it does."""
    import tensorflow as tf

    model, image, found = names["model"], names["image"], names["found"]
    assert type(model).__name__ == type(names["again"]).__name__ == "Glance"
    assert set(names["run"].metrics) >= {"AP", "AP50"}
    assert 0 <= names["metrics"]["AP"] <= 1
    report = (folder / "run-glance" / "report.md").read_text()
    assert "glance" in report
    served = tf.saved_model.load(str(folder / "served-glance"))
    given = served.signatures["serving_default"](images=tf.constant(image[None]))
    scores = np.sort(given["scores"].numpy()[0])[::-1]
    np.testing.assert_allclose(scores[: len(found)], found.scores, atol=1e-4)
    model.save(folder / "glance.keras")
    kept = td.load_model(folder / "glance.keras")
    assert kept.config == model.config
    np.testing.assert_allclose(kept.detect(image, threshold=0.0).scores, found.scores, atol=1e-5)


def _check_data(folder, names, printed):
    inputs, targets = names["inputs"], names["targets"]
    assert set(inputs) == {"pixel_values", "pixel_mask"}
    assert (folder / "look.png").is_file()
    assert (targets["labels"].numpy() >= 0).any()


def _check_evaluate(folder, names, printed):
    assert {path.name for path in (folder / "results").iterdir()} == {"metrics.json", "detections.json"}
    assert (folder / "mistakes.png").is_file()


def _check_port(folder, names, printed):
    assert "opened, and so run" not in printed  # by the pickle
    assert {path.name for path in (folder / "for-transformers").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert (folder / "for-facebookresearch.pth").is_file()


def _check_predict(folder, names, printed):
    for picture in ("attention.png", "detections.png", "found/detections.json"):
        assert (folder / picture).is_file()


def _check_segmentation(folder, names, printed):
    assert (folder / "segments.png").is_file()
    assert (folder / "masks" / "segments.png").is_file()
    # Boxes of drawn shapes, learnt by heart; mask AP before the second stage is 0.
    assert names["second"].metrics["mask_AP50"] > 0.1
    assert (folder / "second" / "best.keras").is_file()
    assert 0 <= names["quality"]["PQ"] <= 1


# What is to come of a page beyond the output that it shows.
CHECKS = {
    "add-a-member.md": _check_member,
    "data/index.md": _check_data,
    "evaluate.md": _check_evaluate,
    "port.md": _check_port,
    "predict.md": _check_predict,
    "segmentation.md": _check_segmentation,
}
