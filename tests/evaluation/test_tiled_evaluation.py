"""AP in tiles: of pictures side by side, each of which is a tile, it is that of the pictures."""

import json

import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.data.tiles import Tiles

SIDE, COUNT = 64, 12


@pytest.fixture(scope="module")
def pictures():
    """Drawn images of one size."""
    records, names = td.data.load_shapes(COUNT, seed=2, size=(SIDE, SIDE))
    return records, names


@pytest.fixture(scope="module")
def mosaic(pictures, tmp_path_factory):
    """The same, four to a file, with COCO's annotations."""
    folder = tmp_path_factory.mktemp("mosaic")
    records, names = pictures
    drawn = list(records.as_numpy_iterator())
    images, annotations = [], []
    for number in range(COUNT // 4):
        whole = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
        for place, record in enumerate(drawn[4 * number : 4 * number + 4]):
            top, left = SIDE * (place // 2), SIDE * (place % 2)
            whole[top : top + SIDE, left : left + SIDE] = record["image"]
            for (x, y, right, bottom), label, area in zip(
                record["boxes"].tolist(), record["labels"].tolist(), record["area"].tolist(), strict=True
            ):
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "area": area, "iscrowd": 0}
                annotations.append(row | {"bbox": [x + left, y + top, right - x, bottom - y]})
        Image.fromarray(whole).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 2 * SIDE, "width": 2 * SIDE})
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_ap_in_tiles_is_that_of_the_pictures(pictures, mosaic):
    records, names = pictures
    model = td.from_pretrained("detr-tiny")
    alone = td.evaluation.evaluate_detections(model, records, names, batch_size=4)
    assert alone["AP"] > 0.6
    large, _ = td.data.load_coco(mosaic, mosaic / "annotations.json")
    tiled = td.evaluation.evaluate_detections(model, large, names, batch_size=4, tiles=Tiles(SIDE, 0.0))
    for name in ("AP", "AP50", "AP75", "APs", "AR100"):
        assert tiled[name] == pytest.approx(alone[name], abs=1e-3)  # boxes are clipped to their tile
    whole = td.evaluation.evaluate_detections(model, large, names, batch_size=4)
    assert whole["AP"] < alone["AP"] / 2  # objects of half the size


def test_at_the_command_line(mosaic, tmp_path, capsys):
    data = ["--data", "coco", "--images", str(mosaic), "--annotations", str(mosaic / "annotations.json")]
    tiles = ["--tile", str(SIDE), "--overlap", "0"]
    assert main(["evaluate", *data, "--model", "detr-tiny", *tiles, "--out", str(tmp_path), "--plots"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] > 0.6
    assert main(["predict", str(mosaic), "--model", "detr-tiny", *tiles, "--out", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found/detections.json").read_text())
    assert len(found) == COUNT // 4
    corners = np.array([one["box"] for image in found for one in image["detections"]])
    assert corners[:, 2:].max() > SIDE  # in pixels of the whole image
    capsys.readouterr()


def test_labels_of_what_is_found(mosaic, tmp_path, capsys):
    """The most uncertain image comes first; what is written is what detections.json says."""
    formats = [option for name in ("coco", "yolo", "label-studio") for option in ("--format", name)]
    command = ["predict", str(mosaic), "--model", "detr-tiny", "--tile", str(SIDE), "--overlap", "0"]
    assert main([*command, *formats, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    found = {
        image["file"].rpartition("/")[2]: image for image in json.loads((tmp_path / "detections.json").read_text())
    }
    written = json.loads((tmp_path / "coco/annotations.json").read_text())
    order = [image["file_name"] for image in written["images"]]
    assert order == sorted(found, key=lambda name: -found[name]["uncertainty"])
    assert found[order[0]]["uncertainty"] > 0
    tasks = json.loads((tmp_path / "label-studio/tasks.json").read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == order
    for image in written["images"]:
        rows = [row for row in written["annotations"] if row["image_id"] == image["id"]]
        told = found[image["file_name"]]["detections"]
        assert [row["score"] for row in rows] == pytest.approx([one["score"] for one in told])
        assert min(row["score"] for row in rows) > 0.5
        lines = (tmp_path / "yolo/labels" / image["file_name"]).with_suffix(".txt").read_text().splitlines()
        assert len(lines) == len(told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "0.2"], "--overlap is for tiles: give --tile, too"),
        (["--tile", "0"], "--tile must be at least 1 pixel, not 0"),
        (["--tile", "64", "--overlap", "1"], "--overlap must be at least 0 and below 1, not 1.0"),
    ],
)
def test_options_that_cannot_be(options, message, capsys):
    assert main(["evaluate", "--data", "shapes", "--model", "detr-tiny", *options]) == 2
    assert message in capsys.readouterr().err


def test_masks_and_tiles_are_refused(pictures):
    records, names = pictures
    with pytest.raises(ValueError, match="masks are measured on whole images, and boxes in tiles"):
        td.evaluation.Evaluator(records, names, masks=True, tiles=Tiles(64))
