import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras import visualize
from tfdetr_keras.cli import inspect_data, main
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.visualize.drawing import class_colour

SHAPES = ["inspect-data", "--data", "shapes", "--size", "96", "128", "--batch-size", "4"]


@pytest.fixture
def coco(tmp_path):
    """A set of three images in COCO's format, and the arguments that name it."""
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / f"{name}.png")
    content = {
        "images": [{"id": i, "file_name": f"{name}.png", "height": 40, "width": 60} for i, name in enumerate("abc")],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "bbox": [10, 10, 30, 20]},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [5, 5, 10, 10]},
        ],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    source = ["--images", str(tmp_path), "--annotations", str(tmp_path / "set.json")]
    return tmp_path, ["inspect-data", "--data", "coco", *source, "--size", "40", "60"]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_a_set_in_numbers_and_its_first_batch(coco, capsys):
    folder, arguments = coco
    out = folder / "new" / "look.png"
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed
    assert "images    3, 1 of them without objects" in printed
    assert "height    40 .. 40 pixels, median 40" in printed
    assert "objects   2, 0.7 per image, at most 1" in printed
    assert "          dog  2  100%" in printed
    assert "without objects: cat" in printed
    assert "left out  nothing" in printed
    assert pixels(out).shape[1] == 3 * 480 + 4 * 8  # a set smaller than a batch is shown whole


@pytest.mark.parametrize("more", [[], ["--training"]])
def test_images_are_called_by_the_names_of_their_files(coco, monkeypatch, more):
    folder, arguments = coco
    given = {}

    def show_batch(batch, names, path, titles):
        path.touch()
        given.update(titles)

    monkeypatch.setattr(visualize, "show_batch", show_batch)
    assert main([*arguments, *more, "--batch-size", "3", "--out", str(folder / "look.png")]) == 0
    assert given == {0: "a.png", 1: "b.png", 2: "c.png"}


OBJECT, GROUND = (0, 90, 200), (40, 40, 40)
# An L, along the borders of pixels: corners x, y.
OUTLINE = [20, 10, 60, 10, 60, 30, 90, 30, 90, 60, 20, 60]


@pytest.fixture
def outlined(tmp_path):
    """Four images of one L each, as COCO has it with polygons and as it has it with segments; where each set is."""
    drawn = np.zeros((80, 120), bool)
    drawn[10:60, 20:60] = drawn[30:60, 20:90] = True
    image = Image.fromarray(np.where(drawn[..., None], np.uint8(OBJECT), np.uint8(GROUND)))
    segment_ids = Image.fromarray(np.where(drawn[..., None], np.uint8((9, 0, 0)), np.uint8((5, 0, 0))))
    (tmp_path / "segments").mkdir()
    images, instances, segments = [], [], []
    for place in range(4):
        image.save(tmp_path / f"{place}.png")
        segment_ids.save(tmp_path / "segments" / f"{place}.png")
        images.append({"id": place, "file_name": f"{place}.png", "height": 80, "width": 120})
        instances.append({"id": place + 1, "image_id": place, "category_id": 5, "bbox": [20, 10, 70, 50]})
        instances[-1]["segmentation"] = [OUTLINE]
        info = [{"id": 9, "category_id": 5}, {"id": 5, "category_id": 7}]
        segments.append({"image_id": place, "file_name": f"{place}.png", "segments_info": info})
    categories = [{"id": 5, "name": "letter", "isthing": 1}, {"id": 7, "name": "wall", "isthing": 0}]
    for name, annotations in (("instances", instances), ("panoptic", segments)):
        content = {"images": images, "categories": categories, "annotations": annotations}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    common = ["inspect-data", "--images", str(tmp_path), "--size", "160", "240", "--batch-size", "4"]
    instances = ["--data", "coco", "--annotations", str(tmp_path / "instances.json")]
    segments = ["--annotations", str(tmp_path / "panoptic.json"), "--segments", str(tmp_path / "segments")]
    return tmp_path, [*common, *instances], [*common, "--data", "coco-panoptic", *segments]


def of_colour(picture, colour):
    """Where a picture has a colour, but for the rounding on its way."""
    return (np.abs(picture.astype(int) - colour) <= 3).all(axis=-1)


def of_the_object(picture):
    """Where a picture has the object, its edge being where the blur is half its colour and half the ground's."""
    way = np.subtract(OBJECT, GROUND)
    share = (picture.astype(float) - GROUND) @ way / (way @ way)
    return of_colour(picture, GROUND + share[..., None] * way) & (share > 0.5)


@pytest.mark.parametrize("training", [[], ["--training", "--batch-size", "8"]])
def test_masks_are_drawn_where_the_objects_are(outlined, capsys, training):
    """The picture with masks differs from that without in the objects, mirrored and cropped as they are."""
    folder, arguments, _ = outlined
    assert main([*arguments, *training, "--out", str(folder / "without.png")]) == 0
    assert "\nmasks " not in capsys.readouterr().out
    assert main([*arguments, *training, "--masks", "--out", str(folder / "with.png")]) == 0
    assert "\nmasks     4, 0 objects without one\n" in capsys.readouterr().out
    without, masked = pixels(folder / "without.png"), pixels(folder / "with.png")
    changed, objects = (without != masked).any(axis=-1), of_the_object(without)
    assert objects.sum() > 4 * 5000
    assert (changed & objects).sum() > 0.98 * (changed | objects).sum()
    both = changed & objects
    assert of_colour(masked[both], (without[both].astype(int) + class_colour(0)) / 2).all()


def test_objects_without_a_segmentation_are_counted_and_drawn_as_boxes(coco, capsys):
    folder, arguments = coco
    for name, more in (("without.png", []), ("with.png", ["--masks"])):
        assert main([*arguments, *more, "--out", str(folder / name)]) == 0
    printed = capsys.readouterr().out
    assert "\nmasks     0, 2 objects without one\n" in printed
    assert "2 objects without a segmentation, whose mask is empty" in printed
    assert (folder / "with.png").read_bytes() == (folder / "without.png").read_bytes()


def test_segments_of_a_panoptic_set_are_drawn_whether_asked_for_or_not(outlined, capsys):
    folder, _, arguments = outlined
    pictures = []
    for more in ([], ["--masks"]):
        assert main([*arguments, *more, "--out", str(folder / "look.png")]) == 0
        assert "\nmasks     8, 0 objects without one\n" in capsys.readouterr().out
        pictures.append(pixels(folder / "look.png"))
    np.testing.assert_array_equal(*pictures)
    for label, colour, least in ((0, OBJECT, 20_000), (1, GROUND, 40_000)):
        blend = np.array(colour) + (np.array(class_colour(label)) - colour) / 2
        assert of_colour(pictures[0], blend).sum() > least
        assert of_colour(pictures[0], colour).sum() < 1000  # what is left is text


@pytest.mark.parametrize("canvas", [["--buckets"], ["--pad-to", "60", "60"]])
def test_training_batches_depend_on_the_seed_alone(coco, canvas):
    folder, arguments = coco
    pictures = []
    for place, seed in enumerate("001"):
        out = folder / f"{place}.png"
        options = ["--training", *canvas, "--color-jitter", "--seed", seed, "--batch-size", "4"]
        assert main([*arguments, *options, "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    assert pixels(folder / "0.png").shape[1] == 4 * 480 + 5 * 8  # a batch is filled from several epochs


def test_shapes_need_no_data(tmp_path, capsys):
    assert main([*SHAPES, "--pad-to", "128", "144", "--out", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "images    256," in printed
    assert all(name in printed for name in ("circle", "square", "triangle"))
    # Canvases of 128 x 144, the longer side drawn as 480 pixels, below a legend and a title.
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert width == 4 * 480 + 5 * 8
    assert 427 + 2 * 8 < height < 427 + 2 * 8 + 110


def test_faulty_images_stop_it_or_are_counted(coco, capsys):
    folder, arguments = coco
    (folder / "c.png").write_bytes(b"no image")
    assert main([*arguments, "--out", str(folder / "look.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert f"{folder / 'c.png'} is not an image that can be read" in error
    assert main([*arguments, "--on-error", "skip", "--out", str(folder / "look.png")]) == 0
    printed = capsys.readouterr().out
    assert "images    2, 0 of them without objects" in printed
    assert "left out  1 unreadable images" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--annotations", "nowhere.json"], "--annotations: there is no file nowhere.json"),
        (["--split", "val"], "does not use --split, only --images, --annotations"),
        (["--class-names", "nowhere.txt"], "there is no file nowhere.txt"),
        (["--color-jitter"], "add --training"),
        (["--size", "60", "40"], "size must be (shortest_edge, longest_edge)"),
        (["--pad-to", "20", "0"], "--pad-to must be of at least 1 pixel each way, not (20, 0)"),
        (["--batch-size", "0"], "error: --batch-size must be at least 1, not 0"),
        (["--out", "."], "is a folder: name the picture"),
        (["--out", "set.json/look.png"], "set.json"),
    ],
)
def test_bad_input_is_told_and_exits_with_2(coco, capsys, monkeypatch, change, message):
    folder, arguments = coco
    monkeypatch.chdir(folder)
    assert main([*arguments, "--out", "look.png", *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (folder / "look.png").exists()


def test_an_error_of_tensorflow_is_told_in_one_line(coco, capsys, monkeypatch):
    def read_source(_):
        message = "{{function_node __wrapped a}} truncated record at 7\n\t [[{{node N}}]] [Op:IteratorGetNext] name: "
        raise tf.errors.DataLossError(None, None, message)

    monkeypatch.setattr(inspect_data, "read_source", read_source)
    assert main([*coco[1], "--out", str(coco[0] / "look.png")]) == 2
    assert capsys.readouterr().err == "error: truncated record at 7\n"


@pytest.mark.parametrize("arguments", [[], ["inspect-data"], ["inspect-data", "--data", "csv", "--out", "a.png"]])
def test_unknown_words_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: tfdetr" in capsys.readouterr().err


def test_help_names_every_kind_of_data(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect-data", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "{coco,coco-panoptic,voc,yolo,tfds,tfrecord,shapes}" in printed
    assert "examples:\n  tfdetr inspect-data" in printed


def test_a_long_pass_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    assert main([*SHAPES, "--out", str(tmp_path / "a.png")]) == 0
    assert "read" not in capsys.readouterr().err  # 256 small images take no time
    monkeypatch.setattr(Counter, "SILENT", 0)
    monkeypatch.setattr(Counter, "EVERY_LINE", 0)
    assert main([*SHAPES, "--out", str(tmp_path / "a.png")]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"read {count} of 256 images" for count in range(1, 257)]
    assert "read" not in captured.out


def test_the_demo_gets_its_options(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("tfdetr_keras.demo.run_demo", lambda *arguments: asked.append(arguments) or len(asked) == 1)
    arguments = ["demo", "--out", str(tmp_path), "--steps", "3", "--source", "somewhere"]
    assert [main(arguments), main(arguments)] == [0, 1]  # the second comparison fails
    assert asked == [(tmp_path, 3, "somewhere")] * 2


@pytest.mark.slow
def test_it_runs_as_a_module(request, tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"not a record " * 9)
    (tmp_path / "names.txt").write_text("cat")
    source = ["--data", "tfrecord", "--annotations", "a.tfrecord", "--class-names", "names.txt"]
    done = subprocess.run(
        [sys.executable, "-m", "tfdetr_keras", "inspect-data", *source, "--out", "a.png"],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "corrupted record" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
