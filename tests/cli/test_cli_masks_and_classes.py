"""`tfdetr evaluate` and `predict` with segmentation models, Conditional DETR, and labels as published weights' are."""

import argparse
import json

import keras
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import port_weights
import tfdetr_keras as td
from tfdetr_keras.cli import main, model_options
from tfdetr_keras.evaluation.panoptic import evaluate_panoptic
from tfdetr_keras.inference.segments import lay_masks
from tfdetr_keras.visualize import draw_segments

SIZE = ["--size", "64", "96"]
NAMES = ["circle", "square", "paper"]
IDS = [2, 3, 7]  # of the categories
SMALL = {
    "backbone": td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=16),
    "num_queries": 12,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A set of drawn squares and circles on paper in COCO's two formats; the second is of segments."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    (folder / "segments").mkdir()
    rng = np.random.default_rng(0)
    images, objects, panoptic = [], [], []
    for image_id in (4, 7, 9):
        height, width = rng.integers(60, 90, 2).tolist()
        pixels, owner = np.full((height, width, 3), 240, np.uint8), np.full((height, width), 1)
        segments_info = [{"id": 1, "category_id": 7}]
        for number in (2, 3):
            top, left, side = rng.integers(5, 30), rng.integers(5, 30), rng.integers(12, 25)
            rows, columns = np.ogrid[:height, :width]
            own = (abs(rows - top - side / 2) < side / 2) & (abs(columns - left - side / 2) < side / 2)
            owner[own] = number
            pixels[own] = rng.integers(0, 200, 3)
            category = int(rng.choice([2, 3]))
            segments_info.append({"id": number, "category_id": category})
            row = {"id": len(objects) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
            x, y, side = int(left), int(top), int(side)
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            objects.append(row | {"bbox": [x, y, side, side], "area": side**2, "segmentation": [polygon]})
        whole = {"id": len(objects) + 1, "image_id": image_id, "category_id": 7, "iscrowd": 0}
        whole |= {"bbox": [0, 0, width, height], "area": width * height}
        objects.append(whole | {"segmentation": [[0, 0, width, 0, width, height, 0, height]]})
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.png")
        colours = np.stack([owner, 0 * owner, 0 * owner], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "segments" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        info = [entry for entry in segments_info if (owner == entry["id"]).any()]
        panoptic.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info})
    categories = [
        {"id": key, "name": name, "isthing": int(name != "paper")} for key, name in zip(IDS, NAMES, strict=True)
    ]
    content = {"images": images, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content | {"annotations": objects}))
    (folder / "panoptic.json").write_text(json.dumps(content | {"annotations": panoptic}))
    return folder


def instances(folder):
    return ["--data", "coco", "--images", str(folder / "images"), "--annotations", str(folder / "instances.json")]


def segments(folder):
    files = ["--annotations", str(folder / "panoptic.json"), "--segments", str(folder / "segments")]
    return ["--data", "coco-panoptic", "--images", str(folder / "images"), *files]


def sees_paper(model, label=2):
    """A model that is not sure of much but that there is paper, nearly everywhere."""
    model.class_head.kernel.assign(model.class_head.kernel * 5)
    model.class_head.bias.assign(5.0 * np.eye(model.config.num_logits)[label])
    if hasattr(model, "mask_head"):
        model.mask_head.outputs.kernel.assign(model.mask_head.outputs.kernel * 8)
        model.mask_head.outputs.bias.assign([8.0])
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of a small model of each class, and one of nine classes without names, as for the categories' own ids."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(5)
    named = {"num_classes": 3, "id2label": dict(enumerate(NAMES))}
    for name, model in {
        "segmenter": td.DETRForSegmentation(td.SegmentationConfig(**SMALL, **named)),
        "conditional": td.ConditionalDETR(td.ConditionalDETRConfig(**SMALL, **named)),
        "published": td.DETRForSegmentation(td.SegmentationConfig(**SMALL, num_classes=9)),
    }.items():
        sees_paper(model, 7 if name == "published" else 2).save(folder / f"{name}.keras")
    return folder


@pytest.mark.slow
def test_masks_are_measured_beside_boxes(coco, models, tmp_path, capsys):
    arguments = ["evaluate", *instances(coco), "--model", str(models / "segmenter.keras"), *SIZE]
    assert main([*arguments, "--out", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    records, names = td.data.load_coco(coco / "images", coco / "instances.json", masks=True)
    model = td.from_pretrained(models / "segmenter.keras")
    expected = td.evaluation.evaluate_detections(model, records, names, (64, 96), masks=True)
    assert json.loads((tmp_path / "results" / "metrics.json").read_text()) == expected
    lines = [line.split() for line in printed.splitlines()]
    for name in ("AP50", "AR100", "mask_AP", "mask_AR100"):
        assert [name, f"{expected[name]:.4f}"] in lines
    assert expected["mask_AP50"] > 0
    header = next(line for line in printed.splitlines() if line.startswith("class"))
    assert header.split() == ["class", "AP", "AP50", "mask_AP", "mask_AP50"]
    row = next(line for line in printed.splitlines() if line.startswith("square"))
    figures = [expected[f"{kind}{name}_per_class"]["square"] for kind in ("", "mask_") for name in ("AP", "AP50")]
    assert row.split()[1:] == [f"{value:.4f}" for value in figures]
    assert "wrote metrics.json, detections.json and segmentations.json" in printed
    files = {path.name for path in (tmp_path / "results").iterdir()}
    assert files == {"metrics.json", "detections.json", "segmentations.json"}
    rows = json.loads((tmp_path / "results" / "segmentations.json").read_text())
    assert {row["category_id"] for row in rows} <= set(IDS)
    assert len(COCO(coco / "instances.json").loadRes(str(tmp_path / "results" / "segmentations.json")).anns) == 36


@pytest.mark.slow
def test_objects_without_a_segmentation_are_told(coco, models, tmp_path, capsys):
    content = json.loads((coco / "instances.json").read_text())
    del content["annotations"][0]["segmentation"]
    (tmp_path / "set.json").write_text(json.dumps(content))
    source = [*instances(coco)[:-1], str(tmp_path / "set.json")]
    assert main(["evaluate", *source, "--model", str(models / "segmenter.keras"), *SIZE]) == 0
    assert "1 objects without a segmentation, whose mask is empty" in capsys.readouterr().out
    assert main(["evaluate", *source, "--model", str(models / "conditional.keras"), *SIZE]) == 0
    printed = capsys.readouterr().out
    assert "segmentation" not in printed
    assert "mask_AP" not in printed


@pytest.mark.slow
def test_independent_classes(coco, models, tmp_path):
    arguments = ["evaluate", *instances(coco), "--model", str(models / "conditional.keras"), *SIZE]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    records, names = td.data.load_coco(coco / "images", coco / "instances.json")
    model = td.from_pretrained(models / "conditional.keras")
    expected = td.evaluation.evaluate_detections(model, records, names, (64, 96))
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 3 * 12 * 3  # images, queries, classes


@pytest.mark.parametrize("threshold", [None, pytest.param("0.5", marks=pytest.mark.slow)])
def test_panoptic_quality(coco, models, tmp_path, capsys, threshold):
    arguments = ["evaluate", *segments(coco), "--model", str(models / "segmenter.keras"), *SIZE]
    arguments += ["--threshold", threshold] if threshold else []
    assert main([*arguments, "--out", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    records, names = td.data.load_coco_panoptic(coco / "images", coco / "panoptic.json", coco / "segments")
    model = td.from_pretrained(models / "segmenter.keras")
    expected = evaluate_panoptic(
        model, records, names, [True, True, False], (64, 96), threshold=float(threshold or 0.85)
    )
    assert json.loads((tmp_path / "results" / "metrics.json").read_text()) == expected
    assert expected["PQ_stuff"] > 0
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["PQ", "SQ", "RQ"]
    assert [line[0] for line in lines[1:7]] == ["all", "things", "stuff", *NAMES]
    assert lines[3][1:] == [f"{expected[f'{name}_stuff']:.4f}" for name in ("PQ", "SQ", "RQ")]
    assert lines[6][1:] == [f"{expected['per_class']['paper'][name]:.4f}" for name in ("PQ", "SQ", "RQ")]
    assert f"wrote metrics.json to {tmp_path / 'results'}" in printed
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["metrics.json"]


def test_a_detector_takes_a_panoptic_set_for_its_boxes(coco, models, tmp_path, capsys):
    arguments = ["evaluate", *segments(coco), "--model", str(models / "conditional.keras"), *SIZE]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "AP50 " in capsys.readouterr().out
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert {row["category_id"] for row in rows} == set(IDS)


@pytest.mark.parametrize("source", [instances, segments])
@pytest.mark.slow
def test_original_category_ids(coco, models, tmp_path, capsys, source):
    """The model has nine classes, of which the set knows three, and names for none."""
    arguments = ["evaluate", *source(coco), "--model", str(models / "published.keras"), *SIZE]
    assert main(arguments) == 2
    assert "the set has other classes than the model: circle, square, paper and class_0" in capsys.readouterr().err
    arguments += ["--category-ids", "original", "--out", str(tmp_path)]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    model = td.from_pretrained(models / "published.keras")
    names = ["N/A", "N/A", "circle", "square", "N/A", "N/A", "N/A", "paper", "N/A"]
    if source is instances:
        records, own = td.data.load_coco(coco / "images", coco / "instances.json", "original", masks=True)
        assert metrics == td.evaluation.evaluate_detections(model, records, names, (64, 96), masks=True)
        assert set(metrics["mask_AP_per_class"]) == set(NAMES)
        rows = json.loads((tmp_path / "segmentations.json").read_text())
        assert {row["category_id"] for row in rows} <= set(range(9))
    else:
        files = coco / "images", coco / "panoptic.json", coco / "segments"
        records, own = td.data.load_coco_panoptic(*files, category_ids="original")
        things = [name in NAMES[:2] for name in names]
        assert metrics == evaluate_panoptic(model, records, names, things, (64, 96))
    assert own == names[:8]


def test_names_must_not_contradict(coco, models, tmp_path, capsys):
    for labels in (dict(enumerate("abcdefghi")), dict(enumerate("abcdefg"))):
        model = td.DETR(td.DETRConfig(**SMALL, id2label=labels, num_classes=len(labels)))
        model.save(tmp_path / "other.keras")
        arguments = ["evaluate", *instances(coco), "--model", str(tmp_path / "other.keras"), *SIZE]
        assert main([*arguments, "--category-ids", "original"]) == 2
        assert "the set has other classes than the model: N/A, N/A, circle" in capsys.readouterr().err
    assert main([*arguments[:1], "--data", "shapes", *arguments[-5:], "--category-ids", "original"]) == 2
    assert "does not use --category-ids" in capsys.readouterr().err
    del arguments[1:3]
    with pytest.raises(SystemExit):
        main([*arguments, "--category-ids", "own"])


@pytest.mark.slow
def test_predict_writes_masks(coco, models, tmp_path, capsys):
    model = td.from_pretrained(models / "segmenter.keras")
    options = ["--model", str(models / "segmenter.keras"), *SIZE, "--threshold", "0.4", "--out", str(tmp_path / "out")]
    assert main(["predict", str(coco / "images"), *options]) == 0
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    records, paths = td.data.load_images(coco / "images")
    expected = list(td.detect(model, records, (64, 96), threshold=0.4))
    for image, found in zip(written, expected, strict=True):
        assert len(image["detections"]) == len(found["scores"])
        for row, box, mask in zip(image["detections"], found["boxes"], found["masks"], strict=True):
            assert set(row) == {"class", "score", "box", "segmentation"}
            np.testing.assert_allclose(row["box"], box, rtol=1e-5)
            np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), mask)
        pixels = np.asarray(Image.open(paths[found["image_id"]]))
        file = paths[found["image_id"]].name
        draw_segments([pixels], [lay_masks(found)], NAMES, tmp_path / "expected.png", titles=[file])
        assert (tmp_path / "out" / image["picture"]).read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert sum(len(found["scores"]) for found in expected) > 3
    assert "wrote pictures and detections.json" in capsys.readouterr().out
    options[1] = str(models / "conditional.keras")
    assert main(["predict", str(coco / "images"), *options]) == 0
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert all(set(row) == {"class", "score", "box"} for image in written for row in image["detections"])


@pytest.mark.slow
def test_sizes_by_table_transformers_rule(coco, models, tmp_path):
    options = ["--model", str(models / "conditional.keras"), *SIZE, "--threshold", "0", "--out", str(tmp_path)]
    assert main(["predict", str(coco / "images"), *options, "--size-rule", "table"]) == 0
    written = json.loads((tmp_path / "detections.json").read_text())
    model = td.from_pretrained(models / "conditional.keras")
    records, _ = td.data.load_images(coco / "images")
    for image, found in zip(
        written, td.detect(model, records, (64, 96), threshold=0.0, size_rule="table"), strict=True
    ):
        np.testing.assert_allclose([row["score"] for row in image["detections"]], found["scores"], rtol=1e-5)
    assert main(["evaluate", *instances(coco), *options[:5], "--size-rule", "table"]) == 0


@pytest.mark.parametrize(
    ("described", "size"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640)),
        ({"size": 800, "max_size": 1000}, (800, 1000)),  # as older published files have it
        ({"size": 600}, (600, 1333)),
        ({"max_size": 1000}, (800, 1333)),
        ({}, (800, 1333)),
    ],
)
def test_sizes_that_a_checkpoint_tells(tmp_path, described, size):
    port_weights.export(td.DETR(td.DETRConfig(**SMALL)), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(described))
    command = argparse.ArgumentParser()
    model_options.add_model_options(command)
    for given, rule in (([], "huggingface"), (["--size-rule", "table"], "table")):
        options = command.parse_args(["--model", str(tmp_path / "checkpoint"), *given])
        model = model_options.read_model(options)
        assert model_options.chosen_preprocessing(options, model) == td.Preprocessing(size, rule)


def test_a_class_may_have_coco_s_name_or_pascal_voc_s():
    """Published RT-DETRs know 80 classes without gaps, some by Pascal VOC's names; so does a set, without its ids."""
    from tfdetr_keras.cli.measured_images import names_for

    names = ["person", "airplane", "potted plant", "Couch", "tv"]
    known = ["person", "aeroplane", "pottedplant", "sofa", "tvmonitor"]
    model = argparse.Namespace(id2label=dict(enumerate(known)))
    assert names_for(model, names, original=False) == names
    with_gaps = ["N/A", *names]
    with pytest.raises(ValueError, match=r"has other classes than the model: N/A, .* \(6 and 5\); use --category-ids"):
        names_for(model, with_gaps, original=True)
    model.id2label = dict(enumerate(["N/A", *known]))
    assert names_for(model, with_gaps, original=True) == with_gaps
    with pytest.raises(ValueError, match="has other classes than the model"):
        names_for(model, [*names[::-1], "cat"], original=False)
