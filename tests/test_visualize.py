import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.data import load_shapes
from tfdetr_keras.visualize import draw_detections, plot_curves

NAMES = ["circle", "square", "triangle"]
GREY = np.full((60, 120, 3), 128, np.uint8)
NOTHING = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
ONE = {"boxes": np.array([[30.0, 15.0, 90.0, 45.0]]), "labels": np.array([1]), "scores": np.array([0.8])}


def drawn(path, *arguments, **options):
    draw_detections(*arguments, path=path, **options)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_detection_is_a_frame_where_its_box_is(tmp_path):
    plain = drawn(tmp_path / "a.png", [GREY], [NOTHING], NAMES)
    framed = drawn(tmp_path / "b.png", [GREY], [ONE], NAMES)
    changed = np.argwhere((plain != framed).any(axis=-1))
    scale = 480 / 120
    assert abs(changed[:, 1].min() - (30 * scale + 8)) <= 1
    assert abs(changed[:, 1].max() - (90 * scale + 8)) <= 1
    assert abs(changed[:, 0].max() - (45 * scale + 8)) <= 1
    centre = tuple(np.array([30, 60]) * int(scale) + 8)
    assert (framed[centre] == 128).all()


def test_the_threshold_hides_and_the_truth_is_drawn(tmp_path):
    plain = drawn(tmp_path / "a.png", [GREY], [NOTHING], NAMES)
    np.testing.assert_array_equal(drawn(tmp_path / "b.png", [GREY], [ONE], NAMES, threshold=0.81), plain)
    truth = drawn(tmp_path / "c.png", [GREY], [NOTHING], NAMES, ground_truth=[ONE])
    both = drawn(tmp_path / "d.png", [GREY], [ONE], NAMES, ground_truth=[ONE])
    assert (truth != plain).any()
    assert (both != truth).any()


def test_a_grid_of_images_of_different_sizes(tmp_path):
    records = list(load_shapes(7)[0].as_numpy_iterator())
    found = [{**record, "scores": np.ones(len(record["labels"]))} for record in records]
    grid = drawn(tmp_path / "grid.png", [r["image"] for r in records], found, NAMES, ground_truth=records, columns=3)
    assert 2 * 400 < grid.shape[1] < 3 * 500
    assert 3 * 300 < grid.shape[0] < 3 * 500


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
