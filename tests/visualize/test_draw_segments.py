"""Pictures of segments: what is where, in which colour, and that names are beside or on what they name."""

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.data import load_coco
from tfdetr_keras.inference.segments import Segments
from tfdetr_keras.visualize import draw_segments, image_of_segments
from tfdetr_keras.visualize.drawing import class_colour

NAMES = [f"class {label}" for label in range(60)]
GREY = np.full((240, 480, 3), 128, np.uint8)  # drawn pixel by pixel
GAP = 8


def found_in(segmentation, labels):
    """As the post-processing returns it; segments are 1, 2, …"""
    entries = [
        {"id": number, "label_id": label, "was_fused": False, "score": 0.9}
        for number, label in enumerate(labels, start=1)
    ]
    return {"segmentation": np.asarray(segmentation, np.int32), "segments_info": entries}


def painted(found, image=GREY):
    return np.asarray(image_of_segments(Segments(**found, class_names=NAMES, image=image))).astype(int)


def stripes(count):
    """Columns 0 … of `count` segments; and one without."""
    return np.broadcast_to(np.minimum(np.arange(480) * (count + 1) // 480 + 1, count + 1) % (count + 1), (240, 480))


def test_a_segment_is_tinted_where_it_is_and_nothing_else():
    segmentation = np.zeros((240, 480), np.int32)
    segmentation[40:200, 100:400] = 1
    picture = painted(found_in(segmentation, [7]))
    changed = (picture != GREY).any(axis=-1)
    assert changed[40:200, 100:400].all()
    assert not changed[:40].any()
    assert not changed[201:].any()  # the outline lies on the first pixel of what is below, or to the right
    assert not changed[:, :100].any()
    assert not changed[:, 401:].any()
    np.testing.assert_array_equal(picture[60, 120], np.round((128 + np.array(class_colour(7))) / 2))
    for line in (picture[40, 100:400], picture[200, 100:400], picture[40:200, 100], picture[40:200, 400]):
        assert (line == 255).all()


def test_the_image_is_seen_through():
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape, np.uint8)
    found = found_in(np.ones((240, 480)), [0])
    difference = painted(found, noise) - painted(found)
    outside = np.ones((240, 480), bool)
    outside[100:140, 180:300] = False  # the name
    correlation = np.corrcoef(difference[outside].ravel(), noise[outside].ravel())[0, 1]
    assert correlation > 0.9


@pytest.mark.parametrize("labels", [[3, 3, 3, 3, 3], [0, 21, 34, 55, 13], [0, 0, 55, 55, 8]])
def test_segments_side_by_side_have_different_colours(labels):
    """Those of one class are shades; those of classes whose colours are alike, as 0's and 55's, are changed."""
    picture = painted(found_in(stripes(len(labels)), labels))
    colours = [picture[80, 480 * place // (len(labels) + 1) + 10] for place in range(len(labels))]
    for place, colour in enumerate(colours):
        for other in colours[:place]:
            assert np.abs(colour - other).max() >= 20
    assert (picture[80, -10] == 128).all()


def test_names_lie_on_large_segments_and_beside_small_ones():
    segmentation = np.zeros((240, 480), np.int32)
    segmentation[20:120, 20:300] = 1
    segmentation[150:156, 400:406] = 2
    large, small = class_colour(5), class_colour(9)
    picture = painted(found_in(segmentation, [5, 9]))
    plates = [np.argwhere((picture == colour).all(axis=-1)) for colour in (large, small)]
    assert (plates[0].min(0) >= (21, 21)).all()
    assert (plates[0].max(0) < (119, 299)).all()
    middle = (plates[0].min(0) + plates[0].max(0)) / 2
    assert np.abs(middle - (70, 160)).max() < 15
    covered = np.zeros((240, 480), bool)
    covered[tuple(plates[1].T)] = True
    assert covered.any()
    assert not covered[150:156, 400:406].any()
    assert np.abs(plates[1] - (153, 403)).max(axis=1).min() < 30  # near


def test_two_names_do_not_share_a_place():
    """A segment around another one, whose middle the inner one's name has."""
    segmentation = np.ones((240, 480), np.int32)
    segmentation[60:180, 120:360] = 2
    picture = painted(found_in(segmentation, [5, 9]))
    boxes = [np.argwhere((picture == class_colour(label)).all(axis=-1)) for label in (5, 9)]
    (top, left), (bottom, right) = boxes[1].min(0), boxes[1].max(0)
    y, x = boxes[0].T
    assert len(y)
    assert not ((top <= y) & (y <= bottom) & (left <= x) & (x <= right)).any()


def test_a_fused_segment_has_one_name():
    segmentation = np.ones((240, 480), np.int32)
    found = found_in(segmentation, [5])
    twice = {**found, "segments_info": found["segments_info"] * 2}
    np.testing.assert_array_equal(painted(found), painted(twice))


@pytest.mark.parametrize("fill", [-1, 0])
def test_an_image_of_no_segment_is_untouched(fill):
    picture = painted(found_in(np.full((240, 480), fill), []))
    np.testing.assert_array_equal(picture[-240:], GREY)
    assert (picture[:-240] < 100).any()  # which says so


def test_a_segment_without_a_pixel_has_no_name():
    np.testing.assert_array_equal(painted(found_in(np.zeros((240, 480)), [4])), GREY)


def test_a_grid_of_photographs(tmp_path, coco128):
    """COCO's own polygons, the small ones on the large ones."""
    records, names = load_coco(
        coco128 / "images", coco128 / "annotations" / "instances_train2017.json", masks=True, on_error="skip"
    )
    images, segments = [], []
    for record in records.take(8).as_numpy_iterator():
        segmentation = np.zeros(record["image"].shape[:2], np.int32)
        for row in np.argsort(-record["masks"].sum((1, 2)), kind="stable"):
            segmentation[record["masks"][row]] = row + 1
        images.append(record["image"])
        segments.append(found_in(segmentation, record["labels"].tolist()))
    draw_segments(images, segments, dict(enumerate(names)), tmp_path / "grid.png", columns=4)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG"
        first = np.asarray(grid.convert("RGB"))[GAP:, GAP:]
    cell = np.asarray(image_of_segments(Segments(**segments[0], class_names=names, image=images[0])))
    height, width = cell.shape[:2]
    assert any(np.array_equal(first[top : top + height, :width], cell) for top in range(60))  # what is said is above


@pytest.mark.parametrize(("images", "count"), [([], 0), ([GREY], 0), ([GREY], 2)])
def test_lists_must_match(tmp_path, images, count):
    with pytest.raises(ValueError, match="images and segments must be as many, at least one"):
        draw_segments(images, [found_in(np.zeros((240, 480)), [])] * count, NAMES, tmp_path / "a.png")


def test_a_map_of_another_size_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\(height, width\) = \(480, 240\), the image \(240, 480\): give the post"):
        draw_segments([GREY], [found_in(np.zeros((480, 240)), [])], NAMES, tmp_path / "a.png")
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        draw_segments([GREY], [found_in(np.zeros((240, 480)), [])], NAMES, tmp_path / "a.png", columns=0)
