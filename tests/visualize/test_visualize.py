import contextlib
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdetr_keras import DETR
from tfdetr_keras.data import load_shapes, prepare
from tfdetr_keras.visualize import draw_attention, draw_detections, draw_mistakes, plot_curves, show_batch, verdict
from tfdetr_keras.visualize.drawing import class_colour

NAMES = ["circle", "square", "triangle"]
GREY = np.full((60, 120, 3), 128, np.uint8)
GAP = 8  # around the images
NOTHING = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
ONE = {"boxes": np.array([[30.0, 15.0, 90.0, 45.0]]), "labels": np.array([1]), "scores": np.array([0.8])}


def drawn(path, *arguments, **options):
    draw_detections(*arguments, path=path, **options)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def in_the_image(picture):
    """The one image of a picture, without what is said above it."""
    return picture[-240 - GAP : -GAP, GAP : GAP + 480]


def test_a_detection_is_a_frame_where_its_box_is(tmp_path):
    plain = in_the_image(drawn(tmp_path / "a.png", [GREY], [NOTHING], NAMES))
    framed = in_the_image(drawn(tmp_path / "b.png", [GREY], [ONE], NAMES))
    assert (plain == 128).all()
    changed = np.argwhere((plain != framed).any(axis=-1))
    scale = 480 / 120
    assert abs(changed[:, 1].min() - 30 * scale) <= 1
    assert abs(changed[:, 1].max() - 90 * scale) <= 1
    assert abs(changed[:, 0].max() - 45 * scale) <= 1
    centre = tuple(np.array([30, 60]) * int(scale))
    assert (framed[centre] == 128).all()


def test_the_threshold_hides_and_the_truth_is_drawn(tmp_path):
    hidden = in_the_image(drawn(tmp_path / "b.png", [GREY], [ONE], NAMES, threshold=0.81))
    assert (hidden == 128).all()
    truth = in_the_image(drawn(tmp_path / "c.png", [GREY], [NOTHING], NAMES, ground_truth=[ONE]))
    both = in_the_image(drawn(tmp_path / "d.png", [GREY], [ONE], NAMES, ground_truth=[ONE]))
    assert (truth != hidden).any()
    assert (both != truth).any()


def test_a_grid_of_images_of_different_sizes(tmp_path):
    records = list(load_shapes(7)[0].as_numpy_iterator())
    found = [{**record, "scores": np.ones(len(record["labels"]))} for record in records]
    grid = drawn(tmp_path / "grid.png", [r["image"] for r in records], found, NAMES, ground_truth=records, columns=3)
    assert 2 * 400 < grid.shape[1] < 3 * 500
    assert 3 * 300 < grid.shape[0] < 3 * 550


@pytest.mark.parametrize("box", [[-500, -500, 500, 500], [110, 50, 300, 90], [200, 200, 300, 300], [20, 20, 20, 20]])
def test_boxes_outside_the_image_do_not_matter(tmp_path, box):
    drawn(tmp_path / "a.png", [GREY], [ONE | {"boxes": np.array([box])}], NAMES)


@pytest.mark.parametrize(
    ("images", "found", "truth"), [([], [], None), ([GREY], [], None), ([GREY], [ONE], [ONE, ONE])]
)
def test_lists_must_match(tmp_path, images, found, truth):
    with pytest.raises(ValueError, match="as many, at least one"):
        draw_detections(images, found, NAMES, tmp_path / "a.png", ground_truth=truth)


def test_curves(tmp_path):
    plot_curves({"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}, tmp_path / "one.png")
    plot_curves({name: [1.0, 0.5, 0.2] for name in "abcd"}, tmp_path / "four.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "four.png") as four:
        assert one.format == four.format == "PNG"
        assert four.width > one.width
        assert four.height > one.height
    with pytest.raises(ValueError, match="history is empty"):
        plot_curves({}, tmp_path / "none.png")


# Canvases of 320 x 480 are drawn pixel by pixel. The first image is smaller, the second fills its canvas.
CANVAS, SMALLER = (320, 480), (200, 300)
BOX = [0.5, 0.5, 0.4, 0.5]  # of the smaller image: columns 90 to 210, rows 50 to 150
HATCHES = {112, 144}


@pytest.fixture(scope="module")
def originals():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*SMALLER, 3), np.uint8), rng.integers(0, 256, (*CANVAS, 3), np.uint8)


def batch_of(originals, labels=((-1,), (-1,)), boxes=((BOX,), (BOX,))):
    """What `prepare` makes of the images: normalised, then padded with zeros."""
    values = np.zeros((2, *CANVAS, 3), np.float32)
    mask = np.zeros((2, *CANVAS), np.int32)
    for place, image in enumerate(originals):
        height, width = image.shape[:2]
        values[place, :height, :width] = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        mask[place, :height, :width] = 1
    targets = {
        "labels": np.array(labels, np.int32),
        "boxes": np.array(boxes, np.float32),
        "image_id": np.array([7, 8]),
        "orig_size": np.array([[100, 150], [640, 960]], np.int32),
    }
    return {"pixel_values": values, "pixel_mask": mask}, targets


def shown(path, batch, **options):
    """The picture, and the two canvases in it, which are at its bottom."""
    show_batch(batch, NAMES, path, **options)
    with Image.open(path) as image:
        assert image.format == "PNG"
        picture = np.asarray(image.convert("RGB")).astype(int)
    height, width = CANVAS
    row = picture[-GAP - height : -GAP]
    return picture, row[:, GAP : GAP + width], row[:, 2 * GAP + width : 2 * (GAP + width)]


def test_a_batch_is_shown_as_its_images_were_and_the_padding_is_hatched(tmp_path, originals):
    _, first, second = shown(tmp_path / "a.png", batch_of(originals))
    height, width = SMALLER
    assert np.abs(first[:height, :width] - originals[0]).max() <= 1
    assert np.abs(second - originals[1]).max() <= 1
    padding = np.ones(CANVAS, bool)
    padding[:height, :width] = False
    assert set(first[padding].ravel()) == HATCHES
    assert (first[padding] == first[padding][:, :1]).all()  # grey
    share = (first[padding] == 112).mean()
    assert 0.45 < share < 0.55


@pytest.mark.parametrize(
    ("box_reference", "left", "top", "right", "bottom"), [("image", 90, 50, 210, 150), ("padded", 144, 80, 336, 240)]
)
def test_boxes_are_framed_relative_to_the_image_or_to_its_canvas(
    tmp_path, originals, box_reference, left, top, right, bottom
):
    _, plain, other = shown(tmp_path / "a.png", batch_of(originals))
    labelled = batch_of(originals, labels=((1,), (-1,)))
    _, framed, untouched = shown(tmp_path / "b.png", labelled, box_reference=box_reference)
    np.testing.assert_array_equal(untouched, other)  # whose row is padding
    colour = framed[bottom, right]
    for line in (framed[top : bottom + 1, (left, right)], framed[(top, bottom), left : right + 1]):
        assert (line == colour).all()
    changed = np.argwhere((plain != framed).any(axis=-1))
    assert changed[:, 0].max() == bottom
    assert (changed[:, 1].min(), changed[:, 1].max()) == (left, right)
    inside = slice(top + 3, bottom - 2), slice(left + 3, right - 2)
    np.testing.assert_array_equal(framed[inside], plain[inside])
    caption = framed[top - 10 : top, left : left + 40]
    assert (caption == colour).all(axis=-1).any()
    assert (caption != colour).any(axis=-1).any()  # the name


def test_names_differ_and_keep_clear_of_small_boxes(tmp_path, originals):
    # A large box, and a small one where the caption of the large one would be.
    large, small = [0.5, 0.5, 0.4, 0.5], [101 / 300, 42 / 200, 14 / 300, 12 / 200]
    batch = batch_of(originals, labels=((1, 2), (-1, -1)), boxes=((large, small), (large, small)))
    _, plain, _ = shown(tmp_path / "a.png", batch_of(originals))
    _, framed, _ = shown(tmp_path / "b.png", batch)
    np.testing.assert_array_equal(framed[40:45, 98:104], plain[40:45, 98:104])
    renamed = batch_of(originals, labels=((1, 0), (-1, -1)), boxes=((large, small), (large, small)))
    assert (shown(tmp_path / "c.png", renamed)[1] != framed).any()


def with_masks(batch, masks):
    inputs, targets = batch
    return inputs, targets | {"masks": masks}


def blended(pixels, share, colour):
    """By half towards the colour where a pixel is of the mask alone."""
    return pixels + share[..., None] / 2 * (np.array(colour) - pixels)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_are_blended_under_frames_and_captions(tmp_path, originals, order):
    """Anywhere on the canvas, the small object's on the large one's, whichever comes first in the targets."""
    shapes = np.array([BOX, [0.4, 0.6, 0.2, 0.3]])[list(order)]
    labels = [np.array([1, 2])[list(order)], (-1, -1)]
    batch = batch_of(originals, labels=labels, boxes=(shapes, shapes))
    masks = np.random.default_rng(0).random((2, 2, *CANVAS)) < 0.4
    _, bare, other = shown(tmp_path / "a.png", batch_of(originals))
    _, framed, _ = shown(tmp_path / "b.png", batch)
    _, masked, untouched = shown(tmp_path / "c.png", with_masks(batch, masks))
    np.testing.assert_array_equal(untouched, other)  # whose rows are padding
    tinted = bare
    for row in np.argsort(-shapes[:, 2]):
        tinted = blended(tinted, masks[0, row], class_colour(labels[0][row]))
    drawn = (framed != bare).any(axis=-1, keepdims=True)
    np.testing.assert_array_equal(masked, np.where(drawn, framed, tinted.round()))
    inside = masks[0].any(axis=0)
    assert (masked[inside] != framed[inside]).any(axis=-1).mean() > 0.9
    np.testing.assert_array_equal(masked[~inside], framed[~inside])


@pytest.mark.parametrize("labels", [((1,), (0,)), ((-1,), (-1,))])
def test_empty_masks_and_those_of_padding_rows_leave_no_trace(tmp_path, originals, labels):
    batch = batch_of(originals, labels=labels)
    show_batch(batch, NAMES, tmp_path / "a.png")
    show_batch(with_masks(batch, np.full((2, 1, *CANVAS), labels[0][0] < 0)), NAMES, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("scale", [0.5, 4])
def test_a_mask_of_one_pixel_is_seen_however_the_image_is_scaled(tmp_path, scale):
    height, width = round(320 / scale), round(480 / scale)
    inputs = {"pixel_values": np.zeros((2, height, width, 3)), "pixel_mask": np.ones((2, height, width))}
    targets = {"labels": np.array([[2], [-1]]), "boxes": np.full((2, 1, 4), 0.1)}
    masks = np.zeros((2, 1, height, width), bool)
    y, x = height // 2 + 1, width // 2 + 1
    masks[0, 0, y, x] = True
    _, plain, _ = shown(tmp_path / "a.png", (inputs, targets))
    _, masked, _ = shown(tmp_path / "b.png", with_masks((inputs, targets), masks))
    share = np.zeros(CANVAS)
    side = max(1, int(scale))
    share[int(y * scale) :, int(x * scale) :][:side, :side] = min(1, scale**2)
    expected = blended(plain, share, class_colour(2))
    assert np.abs(masked - expected).max() <= 1  # the share is rounded to one of 256
    np.testing.assert_array_equal(masked[share == 0], plain[share == 0])
    assert (masked[share > 0] != plain[share > 0]).any(axis=-1).all()


def test_the_title_tells_the_image_and_is_not_cut(tmp_path, originals):
    picture, *_ = shown(tmp_path / "a.png", batch_of(originals))
    inputs, targets = batch_of(originals)
    title = slice(GAP, picture.shape[0] - CANVAS[0] - GAP)
    for change in ({"image_id": np.array([9, 8])}, {"orig_size": np.array([[101, 150], [640, 960]])}):
        changed = shown(tmp_path / "b.png", (inputs, targets | change))[0] != picture
        assert changed[title, : CANVAS[1]].any()
        assert not changed[title.stop :].any()
    narrow = {key: value[:, :, :10] for key, value in inputs.items()}
    show_batch((narrow, targets | {"image_id": np.array([10**17, 8])}), NAMES, tmp_path / "narrow.png", columns=1)
    with Image.open(tmp_path / "narrow.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > 150  # as wide as the text
    assert (pixels[:, -GAP:] == 255).all()


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_as_prepare_yields_it(tmp_path, training):
    dataset, names = load_shapes(4)
    inputs, targets = next(iter(prepare(dataset, 4, training=training, size=(96, 160))))
    show_batch((inputs, targets), names, tmp_path / "tensors.png", columns=2)
    arrays = tuple({key: value.numpy() for key, value in part.items()} for part in (inputs, targets))
    show_batch(arrays, names, tmp_path / "arrays.png", columns=2)
    assert (tmp_path / "tensors.png").read_bytes() == (tmp_path / "arrays.png").read_bytes()
    ragged = {
        key: tf.RaggedTensor.from_tensor(
            targets[key], lengths=tf.reduce_sum(tf.cast(targets["labels"] >= 0, tf.int64), 1)
        )
        for key in ("labels", "boxes")
    }
    show_batch((inputs, targets | ragged), names, tmp_path / "ragged.png", columns=2)
    assert (tmp_path / "ragged.png").read_bytes() == (tmp_path / "tensors.png").read_bytes()


def changed_inputs(**arrays):
    return lambda inputs, targets: (inputs | arrays, targets)


def changed_targets(**arrays):
    return lambda inputs, targets: (inputs, targets | arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs, targets: inputs, r"a batch is \(inputs, targets\).*this is dict"),
        (lambda inputs, targets: (inputs["pixel_values"], targets), r"instead of \['pixel_mask', 'pixel_values'\]"),
        (lambda inputs, targets: (inputs, {"labels": targets["labels"]}), r"instead of \['boxes', 'labels'\]"),
        (changed_inputs(pixel_mask=np.ones((2, 4, 4))), r"pixel_mask \(batch, height, width\), not .*\(2, 4, 4\)"),
        (changed_inputs(pixel_mask=np.zeros((2, *CANVAS))), "image 7: pixel_mask must be 1 in a rectangle"),
        (changed_inputs(pixel_mask=np.eye(320, 480)[None].repeat(2, 0)), "image 7: pixel_mask must be 1 in a rect"),
        (changed_inputs(pixel_values=np.full((2, *CANVAS, 3), np.nan)), "image 7: pixel_values .* not finite"),
        (changed_targets(labels=np.array([[-1], [3]])), "image id 8, row 0: label 3 is not a class"),
        (changed_targets(labels=np.array([[0], [0]]), boxes=np.full((2, 1, 4), 2.0)), r"image id 7.*outside \[0, 1\]"),
        (changed_targets(labels=np.array([[-1]]), boxes=np.zeros((1, 1, 4))), "2 images but targets of 1"),
        (
            changed_targets(masks=np.ones((2, 1, 80, 120), bool)),
            r"masks must be \(batch, boxes, height, width\) = \(2, 1, 320, 480\).* not \(2, 1, 80, 120\)",
        ),
        (changed_targets(masks=np.ones((2, 2, *CANVAS), bool)), r"= \(2, 1, 320, 480\).* not \(2, 2, 320, 480\)"),
    ],
)
def test_what_is_no_batch_is_an_error(tmp_path, originals, change, message):
    with pytest.raises(ValueError, match=message):
        show_batch(change(*batch_of(originals)), NAMES, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_options_of_a_batch_are_checked(tmp_path, originals):
    with pytest.raises(ValueError, match='"image" or "padded", not \'canvas\''):
        show_batch(batch_of(originals), NAMES, tmp_path / "a.png", box_reference="canvas")
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        show_batch(batch_of(originals), NAMES, tmp_path / "a.png", columns=0)


@pytest.fixture(scope="module")
def detector():
    return DETR.from_pretrained("detr-tiny")


def test_attention_lies_on_the_objects(detector):
    """What the picture shows, in numbers: more of it inside the object's box than the box's share of the image."""
    [record] = load_shapes(1, seed=8, size=(64, 96))[0].as_numpy_iterator()
    found = detector.detect(record["image"], (64, 128), attention=True)
    without = detector.detect(record["image"], (64, 128))
    assert without.attention is None
    np.testing.assert_allclose(found.boxes, without.boxes, rtol=0, atol=1e-4)
    assert found.names == without.names
    assert len(found) == len(record["labels"])
    count, height, width = found.attention.shape
    assert (count, height, width) == (len(found), 10, 8)
    np.testing.assert_allclose(found.attention.sum((1, 2)), 1, rtol=0, atol=1e-6)
    scale = np.array([width, height] * 2) / np.tile(found.image.shape[1::-1], 2)
    for attention, box in zip(found.attention, found.boxes, strict=True):
        x1, y1, x2, y2 = np.clip(box * scale, 0, [width, height] * 2)
        top, left, bottom, right = int(y1), int(x1), int(np.ceil(y2)), int(np.ceil(x2))
        assert attention[top:bottom, left:right].sum() > 1.5 * (bottom - top) * (right - left) / (height * width)


def test_attention_of_padding_is_nothing(detector):
    inputs = {"pixel_values": np.zeros((1, 64, 96, 3), np.float32), "pixel_mask": np.ones((1, 64, 96), np.int32)}
    inputs["pixel_mask"][:, :, 48:] = 0
    weights = np.array(detector.stages(inputs, attention=True)["decoder.layer2.attention"])
    assert not weights.reshape(1, 4, 25, 8, 12)[..., 6:].any()


def test_a_picture_of_the_attention(detector, tmp_path):
    [record] = load_shapes(1, seed=8, size=(64, 96))[0].as_numpy_iterator()
    sizes = {}
    for threshold in (0.5, 0.999999):
        draw_attention(detector.detect(record["image"], (64, 128), threshold, attention=True), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.format == "PNG"
            sizes[threshold] = np.asarray(image.convert("RGB"))
    assert (sizes[0.5] < 250).any(-1).sum() > 2 * (sizes[0.999999] < 250).any(-1).sum()  # more panels
    with pytest.raises(ValueError, match="these detections are without attention"):
        draw_attention(detector.detect(record["image"], (64, 128)), tmp_path / "a.png")


def boxes_of(*rows):
    return np.array(rows, float).reshape(-1, 4)


def test_hits_misses_and_false_alarms():
    truth = {"boxes": boxes_of([0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 10]), "labels": np.array([0, 1, 0])}
    found = {
        # The first true box, once more and worse; of another class; below the threshold; a little of the third.
        "boxes": boxes_of([0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 10], [40, 0, 49, 10]),
        "labels": np.array([0, 0, 0, 1, 0]),
        "scores": np.array([0.9, 0.8, 0.7, 0.4, 0.95]),
    }
    seen = verdict(found, truth)
    assert seen.hits.tolist() == [0]
    assert seen.false_alarms.tolist() == [4, 1, 2]
    assert seen.misses.tolist() == [1, 2]
    lower = verdict(found, truth, threshold=0.3, min_iou=0.4)
    assert lower.hits.tolist() == [4, 0, 3]
    assert lower.misses.tolist() == []
    assert verdict(NOTHING, truth).misses.tolist() == [0, 1, 2]
    assert verdict(found, NOTHING).false_alarms.tolist() == [4, 0, 1, 2]


def test_crowds_are_neither_missed_nor_false():
    truth = {"boxes": boxes_of([0, 0, 100, 100]), "labels": np.array([0]), "iscrowd": np.array([True])}
    inside = {"boxes": boxes_of([5, 5, 10, 10], [5, 5, 10, 10]), "labels": np.array([0, 1]), "scores": np.ones(2)}
    seen = verdict(inside, truth)
    assert (seen.hits.tolist(), seen.false_alarms.tolist(), seen.misses.tolist()) == ([], [1], [])


def test_the_verdicts_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(20):
        corners = rng.uniform(0, 50, (6, 2))
        true_boxes = np.concatenate([corners, corners + rng.uniform(11, 40, (6, 2))], axis=1)
        truth = {"boxes": true_boxes, "labels": rng.integers(0, 2, 6), "iscrowd": rng.random(6) < 0.2}
        boxes = np.concatenate([true_boxes + rng.uniform(-5, 5, (6, 4)), true_boxes[:3] + 2])
        labels = np.concatenate([truth["labels"], truth["labels"][:3]])
        found = {"boxes": boxes, "labels": labels, "scores": rng.uniform(0.5, 1, 9)}
        seen = verdict(found, truth)
        expected = {"hits": [], "false_alarms": []}
        for image in coco_verdict(found, truth):
            for row, match, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
                if not ignored:
                    expected["hits" if match else "false_alarms"].append(row - 1)
        assert sorted(seen.hits) == sorted(expected["hits"])
        assert sorted(seen.false_alarms) == sorted(expected["false_alarms"])
        assert len(seen.misses) == (~truth["iscrowd"]).sum() - len(seen.hits)
        hits.append(len(seen.hits))
    assert 1 < np.mean(hits) < 5


def coco_verdict(found, truth):
    """pycocotools' own matching at an IoU of 0.5, by class; ids count from 1."""

    def rows(source, **more):
        xywh = np.concatenate([source["boxes"][:, :2], source["boxes"][:, 2:] - source["boxes"][:, :2]], axis=1)
        return [
            {"id": row + 1, "image_id": 1, "category_id": int(source["labels"][row]), "bbox": box.tolist()}
            | {"area": float(box[2] * box[3])}
            | {key: value[row].item() for key, value in more.items()}
            for row, box in enumerate(xywh)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        coco, results = COCO(), COCO()
        shared = {"images": [{"id": 1}], "categories": [{"id": 0}, {"id": 1}]}
        coco.dataset = shared | {"annotations": rows(truth, iscrowd=truth["iscrowd"].astype(int))}
        results.dataset = shared | {"annotations": rows(found, score=found["scores"])}
        coco.createIndex(), results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.iouThrs, evaluation.params.areaRng = np.array([0.5]), [[0, 1e10]]
        evaluation.evaluate()
    return [image for image in evaluation.evalImgs if image is not None]


def test_the_worst_image_comes_first(tmp_path):
    truth = {"boxes": ONE["boxes"], "labels": ONE["labels"]}
    draw_mistakes([GREY, GREY], [ONE, NOTHING], [truth, truth], NAMES, tmp_path / "a.png", columns=1)
    with Image.open(tmp_path / "a.png") as image:
        upper, lower = np.array_split(np.asarray(image.convert("RGB")).astype(int), 2)
    for half, colour in ((upper, (230, 40, 40)), (lower, (40, 200, 80))):
        assert (np.abs(half - colour).max(-1) == 0).sum() > 800
    with pytest.raises(ValueError, match="as many, at least one"):
        draw_mistakes([GREY], [], [], NAMES, tmp_path / "a.png")
