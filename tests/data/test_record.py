import numpy as np
import pytest

from tfdetr_keras.data.record import clip_boxes, validate_annotations

GOOD = [[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 3.0, 5.0]]


def test_good_annotations_and_none_at_all_pass():
    validate_annotations(np.array(GOOD), np.array([0, 2]), 3, "set", 7)
    validate_annotations(np.zeros((0, 4)), np.zeros(0, int), 3, "set", 7)


@pytest.mark.parametrize(
    ("box", "label", "complaint"),
    [
        ([0, 0, np.nan, 4], 0, "non-finite"),
        ([0, 0, np.inf, 4], 0, "non-finite"),
        ([4, 0, 4, 4], 0, "x2 <= x1"),
        ([0, 5, 4, 4], 0, "y2 <= y1"),
        ([0, 0, 4, 4], 3, r"outside 0\.\.2"),
        ([0, 0, 4, 4], -1, r"outside 0\.\.2"),
    ],
)
def test_a_bad_annotation_is_named(box, label, complaint):
    boxes, labels = np.array([*GOOD, box], np.float32), np.array([0, 2, label])
    with pytest.raises(ValueError, match=rf"set\.json: image 7, row 2 .*{complaint}"):
        validate_annotations(boxes, labels, 3, "set.json", 7)
    with pytest.raises(ValueError, match=rf"set\.json: image 9, row 55 .*{complaint}"):
        validate_annotations(boxes, labels, 3, "set.json", np.array([7, 8, 9]), rows=np.array([33, 44, 55]))


@pytest.mark.parametrize(("boxes", "labels"), [(np.zeros((2, 5)), np.zeros(2)), (np.zeros((2, 4)), np.zeros(3))])
def test_wrong_shapes_are_named(boxes, labels):
    with pytest.raises(ValueError, match="image 7: boxes must be"):
        validate_annotations(boxes, labels, 3, "set", 7)


def test_clipping_keeps_what_lies_inside():
    boxes = np.array([[-5, 1, 50, 6], [3, 3, 3, 5], [20, 0, 30, 5], [0, -9, 5, 0], [np.nan, 0, 1, 1]], np.float32)
    clipped, kept = clip_boxes(boxes, np.array([8, 20]))
    np.testing.assert_array_equal(kept, [True, False, False, False, True])
    np.testing.assert_array_equal(clipped[0], [0, 1, 20, 6])
    assert np.isnan(clipped[4, 0])
