"""That pictures can be understood by themselves: names, legends, what is not there, axes; and that lines are seen."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tfdetr_keras.data import load_coco, load_shapes, split
from tfdetr_keras.data.record import title_of
from tfdetr_keras.inference.detections import Detections
from tfdetr_keras.training import reporting
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.visualize import (
    batch,
    detections,
    draw_attention,
    draw_detections,
    draw_mistakes,
    draw_segments,
    image_of_attention,
    image_of_detections,
    mistakes,
    plot_curves,
    segments,
    show_batch,
)
from tfdetr_keras.visualize.curves import power_of_ten
from tfdetr_keras.visualize.drawing import class_colour, dashed_frames, frames_with_tags
from tfdetr_keras.visualize.tags import Wording

NAMES = ["RBC", "WBC", "Platelets"]
GREY = np.full((120, 160, 3), 128, np.uint8)
NOTHING = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
ONE = {"boxes": np.array([[30.0, 15.0, 90.0, 45.0]]), "labels": np.array([1]), "scores": np.array([0.8])}
CURIOUS = ["$a_1$ and $b", "naïve", "a name that is very much longer than a panel of the figure"]
UNSURE = ONE | {"scores": np.array([0.31])}


def crowded(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (count, 2))], axis=1)
    return {"boxes": boxes, "labels": rng.integers(0, 2, count), "scores": rng.uniform(0.6, 1, count)}


@pytest.fixture
def said(monkeypatch):
    """What is said above each image, as (name, lines, texts of the key); the last entry is that of the legend."""
    tiles = []
    for module in (batch, detections, mistakes, segments):
        tile, write_grid = module.tile, module.write_grid

        def spy(image, lines, name=None, key=(), tile=tile):
            tiles.append((name, list(lines), [text for *_, text in key]))
            return tile(image, lines, name, key)

        def legend_spy(cells, path, columns, legend=(), write_grid=write_grid):
            tiles.append([text for *_, text in legend])
            return write_grid(cells, path, columns, legend)

        monkeypatch.setattr(module, "tile", spy)
        monkeypatch.setattr(module, "write_grid", legend_spy)
    return tiles


def test_detections_are_counted_and_what_is_not_there_is_said(said, tmp_path):
    images, found, truth = [GREY] * 4, [ONE, UNSURE, NOTHING, ONE], [ONE, ONE, NOTHING, NOTHING]
    draw_detections(images, found, NAMES, tmp_path / "a.png", truth, titles=["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    assert said == [
        ("a.jpg", ["1 detected, 1 annotated"], []),
        ("b.jpg", ["nothing above 0.50 (highest 0.31), 1 annotated"], []),
        ("c.jpg", ["nothing above 0.50, no objects annotated"], []),
        ("d.jpg", ["1 detected, no objects annotated"], []),
        ["detected, in its class's colour", "annotated"],
    ]
    said.clear()
    draw_detections([GREY], [UNSURE], NAMES, tmp_path / "a.png", threshold=0.4)
    assert said == [(None, ["nothing above 0.40 (highest 0.31)"], []), []]


def test_a_crowd_has_a_key_of_its_classes_and_says_how_many_tags_are_left_out(said, tmp_path):
    found = crowded(150)
    counts = sorted(np.bincount(found["labels"]).tolist(), reverse=True)
    draw_detections([GREY, GREY], [found, found], NAMES, tmp_path / "a.png")
    _, (count, crowding), key = said[0]
    assert count == "150 detected"
    left_out = int(crowding.removeprefix("no room for ").removesuffix(" of 150 tags"))
    assert 20 < left_out < 150
    assert sorted(int(text.split(" × ")[1]) for text in key)[::-1] == counts
    assert {text.split(" × ")[0] for text in key} == {"RBC", "WBC"}
    several = {key: np.repeat(value, 80, axis=0) for key, value in ONE.items()} | {"labels": np.arange(80)}
    said.clear()
    draw_detections([GREY], [several], [f"class {label}" for label in range(80)], tmp_path / "a.png")
    assert len(said[0][2]) == 25
    assert said[0][2][-1] == "and 56 more classes"


def test_mistakes_have_a_legend_and_are_counted(said, tmp_path):
    truth = [ONE, ONE, NOTHING, NOTHING]
    draw_mistakes([GREY] * 4, [ONE, UNSURE, ONE, NOTHING], truth, NAMES, tmp_path / "a.png", titles=list("abcd"))
    assert said == [
        ("b", ["nothing above 0.50, 1 annotated"], []),
        ("c", ["0 hit, 0 missed, 1 false, no objects annotated"], []),
        ("a", ["1 hit, 0 missed, 0 false"], []),
        ("d", ["nothing above 0.50, no objects annotated"], []),
        ["hit: found as annotated", "missed: annotated, not found", "false alarm: found, not annotated"],
    ]


@pytest.mark.slow
def test_segments_are_counted(said, tmp_path):
    segmentation = np.zeros(GREY.shape[:2], np.int32)
    segmentation[20:100, 20:100] = 1
    entry = {"id": 1, "label_id": 2, "score": 0.9, "was_fused": False}
    one = {"segmentation": segmentation, "segments_info": [entry]}
    none = {"segmentation": 0 * segmentation, "segments_info": []}
    many = {
        "segmentation": (np.arange(120)[:, None] // 4 * 40 + np.arange(160) // 4).astype(np.int32) + 1,
        "segments_info": [entry | {"id": number} for number in range(1, 1201)],
    }
    draw_segments([GREY] * 3, [one, none, many], NAMES, tmp_path / "a.png", titles=["a", "b", "c"])
    assert said[:2] == [("a", ["1 segment"], []), ("b", ["no segments"], [])]
    name, (count, crowding), key = said[2]
    assert (name, count, key) == ("c", "1200 segments", ["Platelets × 1200"])
    assert crowding.endswith(" of 1200 tags")


def test_a_batch_names_its_images_and_explains_the_hatching(said, tmp_path):
    mask = np.ones((2, 60, 80), int)
    mask[1, 40:] = 0
    inputs = {"pixel_values": np.zeros((2, 60, 80, 3)), "pixel_mask": mask}
    targets = {"labels": np.array([[1], [-1]]), "boxes": np.full((2, 1, 4), 0.4), "image_id": np.array([7, 8])}
    show_batch((inputs, targets), NAMES, tmp_path / "a.png", titles={7: "seven.jpg"})
    assert said == [
        ("seven.jpg", ["1 object", "60 × 80"], []),
        ("image 8", ["no objects", "40 × 80"], []),
        ["annotated, in its class's colour", "padding"],
    ]


@pytest.mark.parametrize("draw", [draw_detections, draw_mistakes, draw_segments])
def test_titles_must_be_as_many_as_images(draw, tmp_path):
    nothing = NOTHING | {"segmentation": np.zeros(GREY.shape[:2], np.int32), "segments_info": []}
    lists = ([GREY], [nothing], [nothing], NAMES) if draw is draw_mistakes else ([GREY], [nothing], NAMES)
    with pytest.raises(ValueError, match="titles must be one for each of the 1 images, not 2"):
        draw(*lists, tmp_path / "a.png", titles=["a", "b"])


def test_titles_are_the_names_of_files(coco128):
    records, _ = load_coco(coco128 / "images", coco128 / "annotations" / "instances_train2017.json", on_error="skip")
    for part in (records, *split(records, 0.2)):
        [record] = part.take(1).as_numpy_iterator()
        image_id = int(record["image_id"])
        assert title_of(part, image_id) == f"{image_id:012d}.jpg"
    assert title_of(records.take(2), image_id) == f"{image_id:012d}.jpg"
    assert title_of(records, -5) == "image -5"
    assert title_of(load_shapes(4)[0], 2) == "image 2"


def test_the_pictures_of_a_run_name_their_files(coco128, monkeypatch, tmp_path):
    records, names = load_coco(
        coco128 / "images", coco128 / "annotations" / "instances_train2017.json", on_error="skip"
    )
    given = {}
    monkeypatch.setattr(reporting, "draw_detections", lambda *_, titles, **options: given.update(detections=titles))
    monkeypatch.setattr(reporting, "draw_segments", lambda *_, titles: given.update(segments=titles))
    monkeypatch.setattr(reporting, "_segments", lambda found, size: None)
    run = SimpleNamespace(path=tmp_path, write_best=lambda metrics, epoch: None)
    teller = reporting.Reporting(run, SimpleNamespace(), None, names, Settings(tensorboard=False), masks=True)
    ids = [int(record["image_id"]) for record in records.take(20).as_numpy_iterator()]
    found = [NOTHING | {"image_id": image_id} for image_id in ids]
    teller.validation, teller.precision = (
        records,
        SimpleNamespace(metrics={}, evaluator=SimpleNamespace(detections=found)),
    )
    monkeypatch.setattr(reporting, "whole_file", contextlib.nullcontext)
    teller.keep_best(0)
    assert len(given["detections"]) == reporting.PICTURES
    assert given["segments"] == given["detections"]
    assert set(given["detections"]) <= {f"{image_id:012d}.jpg" for image_id in ids}


def detected(count, size=(120, 160)):
    height, width = size
    boxes = np.tile(np.array([[0.2 * width, 0.2 * height, 0.6 * width, 0.6 * height]], np.float32), (count, 1))
    return Detections(
        scores=np.linspace(0.99, 0.5, count, dtype=np.float32),
        labels=np.arange(count) % 3,
        boxes=boxes,
        names=[CURIOUS[row % 3] for row in range(count)],
        image=np.full((height, width, 3), 90, np.uint8),
        attention=np.random.default_rng(0).random((count, 4, 5)).astype(np.float32),
    )


@pytest.fixture
def figures(monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: saved.append(self))
    return saved


@pytest.mark.parametrize(
    ("count", "title"), [(25, "11 of 25 objects"), (11, "11 objects"), (1, "1 object"), (0, "nothing found")]
)
def test_the_attention_s_title_tells_how_many_objects_are_drawn(figures, tmp_path, count, title):
    draw_attention(detected(count), tmp_path / "a.png")
    [figure] = figures
    shown = [axis for axis in figure.axes if axis.images]
    assert shown[0].get_title() == title
    assert len(shown[0].patches) == len(shown) - 1 == min(count, 11)
    assert [text.get_text() for text in shown[0].texts] == [str(place + 1) for place in range(len(shown) - 1)]
    for place, axis in enumerate(shown[1:], start=1):
        assert axis.get_title().startswith(f"{place}: ")
        assert not axis.title.get_parse_math()
    if count:
        figure.canvas.draw()
        for axis in shown:
            box = axis.title.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
        assert "yellow" in figure.get_supxlabel()


@pytest.mark.parametrize("size", [(120, 160), (64, 64), (2000, 300), (300, 2000)])
def test_pictures_of_one_image_keep_its_size_below_what_is_said(size):
    height, width = size
    for picture in (image_of_detections(detected(3, size), 480), image_of_attention(detected(1, size), 0, 480)):
        scale = 480 / max(size)
        assert picture.width >= round(width * scale)
        assert picture.height - round(height * scale) in range(90)
    nothing = image_of_detections(detected(0, size), 480)
    pixels = np.asarray(nothing)[-round(height * scale) :, : round(width * scale)]
    assert (pixels == 90).all()
    assert nothing.height > round(height * scale)


def contrast(pixels, ground):
    """By how much, in levels of brightness, a picture's pixels stand out."""
    return np.abs((pixels.astype(int) - ground) @ np.array([0.299, 0.587, 0.114]))


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (128, 128, 128), *map(class_colour, range(5))])
def test_frames_are_seen_on_any_ground(ground):
    image = Image.new("RGB", (200, 150), ground)
    dashed_frames(image, np.array([[20, 20, 180, 130]]))
    assert contrast(np.asarray(image)[70:90, 20:22], ground).max() > 100
    for label in range(5):
        image = Image.new("RGB", (200, 150), ground)
        frames_with_tags(image, np.array([[20, 60, 180, 130]]), [class_colour(label)], [Wording("name", "0.90")])
        line = np.asarray(image)[100, 20:23]
        assert contrast(line, ground).max() > 60
        tag = np.asarray(image)[42:58, 21:60].reshape(-1, 3)
        assert contrast(tag, np.array(class_colour(label))).max() > 100


def panels(figures, history, tmp_path):
    plot_curves(history, tmp_path / "a.png")
    figure = figures.pop()
    figure.canvas.draw()
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


@pytest.mark.parametrize(
    ("values", "top"),
    [
        ([0.0, 0.0], 1),
        ([0.0], 1),
        ([0.02, 0.04], 0.1),
        ([0.3, 0.42], 0.5),
        ([0.6], 1),
        ([0.99, 1.0], 1),
        ([-1, 0.2], 0.25),
    ],
)
def test_the_axis_of_ap_is_from_0(figures, tmp_path, values, top):
    for name in ("val_AP", "val_AP50", "val_mask_AP75"):
        [axis] = panels(figures, {name: values}, tmp_path).values()
        assert axis.get_ylim() == (0, top)
        assert min(axis.lines[0].get_ydata()) >= 0  # -1 is "no such objects"


def test_losses_have_sensible_axes_and_one_point_is_seen(figures, tmp_path):
    nan = float("nan")
    history = {"loss": [30.0, 2.0], "val_loss": [nan, 2.5], "loss_ce": [0.0, 0.0], "odd": [-1.0, 1.0]}
    axes = panels(figures, history, tmp_path)
    low, high = axes["loss"].get_ylim()
    assert low == 0
    assert 30 < high < 35
    assert axes["loss_ce"].get_ylim() == (0, 1)
    assert axes["odd"].get_ylim()[0] < -1
    training, validation = axes["loss"].lines
    assert validation.get_xdata().tolist() == [2]
    assert validation.get_marker() == "o"
    assert training.get_color() != validation.get_color()
    assert [text.get_text() for text in axes["loss"].get_legend().get_texts()] == ["training", "validation"]
    [ap] = panels(figures, {"val_AP": [0.5]}, tmp_path).values()
    assert ap.lines[0].get_color() == validation.get_color()
    assert [tick for tick in ap.get_xticks() if 0.5 <= tick <= 1.5] == [1]
    [unknown] = panels(figures, {"val_APs": [-1.0, -1.0]}, tmp_path).values()
    assert unknown.texts[0].get_text() == "nothing measured"


def test_learning_rates_are_readable(figures, tmp_path):
    [axis] = panels(figures, {"learning_rate": [1e-4] * 10 + [1e-5] * 10}, tmp_path).values()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert "1e-4" in labels
    assert axis.yaxis.get_offset_text().get_text() == ""
    assert [power_of_ten(value) for value in (0, 1e-4, 2.5e-5, 1, 3e-12)] == ["0", "1e-4", "2.5e-5", "1e0", "3e-12"]
    for label, tick in zip(labels, axis.get_yticks(), strict=True):
        assert float(label) == pytest.approx(tick, rel=1e-2, abs=1e-12)
