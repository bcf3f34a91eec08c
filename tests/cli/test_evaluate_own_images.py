"""`tfdetr evaluate` without `--data`: a run on its own images, as the run itself measured them."""

import json
import shutil

import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.models import PRESETS

pytestmark = [pytest.mark.usefixtures("without_tracing"), pytest.mark.slow]

COUNT, SHARE, SEED = 20, 0.3, 3
SHAPES = ["--data", "shapes", "--count", str(COUNT), "--drawn-size", "48", "64"]
SPLIT = ["--val-split", str(SHARE), "--seed", str(SEED)]
SHORT = ["--from", "detr-tiny", "--size", "64", "64", "--epochs", "1", "--augmentation", "none"]
CANVAS = ["--pad-to", "64", "64", "--batch-size", "4"]
# By default on a set of its own size, so that the share of the images is no share of these.
OTHERS = ["--val-drawn-seed", "7", "--val-count", "5"]


def train(folder, *options):
    assert main(["train", *SHAPES, *SHORT, *options, "--out", str(folder)]) == 0
    return folder


def best_of(run, at_least=0.3):
    """What the run noted; detr-tiny knows these shapes, so that equality says something."""
    best = json.loads((run / "best.json").read_text())
    del best["epoch"]
    assert best["AP"] >= at_least
    return best


def measured(run, out, *options):
    """What the command writes: the metrics, and the images that it looked at."""
    assert main(["evaluate", "--model", str(run), "--out", str(out), *options]) == 0
    detections = json.loads((out / "detections.json").read_text())
    return json.loads((out / "metrics.json").read_text()), {row["image_id"] for row in detections}


def ids(records):
    return {int(record["image_id"]) for record in records.as_numpy_iterator()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("own") / "run", *SPLIT, *CANVAS, "--cache")


@pytest.fixture(scope="module")
def parts():
    records, _ = td.data.load_shapes(COUNT, size=(48, 64))
    return td.data.split(records, SHARE, SEED)


def test_the_images_held_back_by_val_split_are_measured_as_in_training(run, parts, tmp_path, capsys):
    metrics, images = measured(run, tmp_path)
    assert metrics == best_of(run)
    assert images == ids(parts[1])
    assert f"the validation images of {run}" in capsys.readouterr().out


def test_the_training_part_is_the_rest(run, parts, tmp_path):
    metrics, images = measured(run, tmp_path, "--part", "training")
    assert images == ids(parts[0])
    assert metrics != best_of(run)


def test_the_same_in_python(run, parts):
    folder = td.training.RunFolder(run)
    names = folder.config()["class_names"]
    metrics = td.evaluation.evaluate_detections(folder.load_model(), parts[1], names, **folder.evaluation)
    assert metrics == best_of(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        SPLIT,  # each image by itself
        [*SPLIT, "--buckets"],
        [*SPLIT, *CANVAS, "--ema-momentum", "0.5"],
        [*OTHERS, *CANVAS],
    ],
    ids=["no canvas", "buckets", "averages", "a set of its own"],
)
def test_equal_however_it_was_trained(options, tmp_path):
    run = train(tmp_path / "run", *options)
    metrics, images = measured(run, tmp_path / "results")
    assert metrics == best_of(run)
    assert len(images) == (5 if options[0] == OTHERS[0] else round(SHARE * COUNT))


@pytest.mark.slow
def test_masks_are_measured_and_category_ids_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Of random weights: detr-tiny is too thin for a mask head.
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    backbone = td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=16)
    monkeypatch.setitem(PRESETS, "detr-small", td.DETRConfig(backbone=backbone, num_queries=10, **widths))
    content = {"images": [], "annotations": [], "categories": []}
    records, names = td.data.load_shapes(8, size=(64, 64))
    content["categories"] = [{"id": 10 * place + 7, "name": name} for place, name in enumerate(names)]
    for place, record in enumerate(records.as_numpy_iterator()):
        Image.fromarray(record["image"]).save(f"{place}.png")
        content["images"].append({"id": place, "file_name": f"{place}.png", "height": 64, "width": 64})
        for label, (x1, y1, x2, y2) in zip(record["labels"], record["boxes"].tolist(), strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": place,
                    "category_id": 10 * int(label) + 7,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    (tmp_path / "shapes.json").write_text(json.dumps(content))
    data = ["--data", "coco", "--images", ".", "--annotations", "shapes.json", "--val-split", "0.5", "--masks"]
    assert main(["train", *data, *SHORT, *CANVAS, "--from", "detr-small", "--freeze", "", "--out", "run"]) == 0
    metrics, images = measured(tmp_path / "run", tmp_path / "results")
    assert metrics == best_of(tmp_path / "run", at_least=0)
    assert "mask_AP" in metrics
    held_out = td.data.split(td.data.load_coco(tmp_path, tmp_path / "shapes.json")[0], 0.5)[1]
    assert images == ids(held_out)
    rows = json.loads((tmp_path / "results" / "segmentations.json").read_text())
    assert {row["category_id"] for row in rows} <= {7, 17, 27}


def copy_with(run, folder, **changes):
    """A run whose configuration says otherwise of its data; None stands for a run from Python."""
    shutil.copytree(run, folder)
    content = json.loads((folder / "config.json").read_text())
    content["data"] = content["data"] | changes if changes else None
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_what_cannot_be_measured_is_refused(run, tmp_path, capsys):
    for arguments, message in (
        (["--model", "detr-tiny"], "name with --data the set to measure detr-tiny on: only the folder of a run has"),
        (["--model", copy_with(run, tmp_path / "python")], "was trained from Python, and only the program knows"),
        (["--model", copy_with(run, tmp_path / "alone", val_split=None)], "was trained without validation images"),
        (["--model", str(run), "--images", "photos", "--on-error", "skip"], "--images, --on-error: name with --data"),
        (["--model", str(run), "--category-ids", "original"], "--category-ids: name with --data the kind"),
        (["--model", str(run), *SHAPES, "--part", "training"], "--part names a part of the run's own images"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_run_without_validation_images_is_measured_on_those_of_its_training(run, tmp_path):
    folder = copy_with(run, tmp_path / "alone", val_split=None)
    _, images = measured(folder, tmp_path / "results", "--part", "training")
    assert images == set(range(COUNT))
