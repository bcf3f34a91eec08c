import logging
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.validation import EMPTY_BOX, Tally, Validation

GOOD = [[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 3.0, 5.0]]
SIZE = np.array([8, 20])


def describe(row):
    return f"set.json: image 7, row {row}"


def admit(validation, boxes, labels, sizes=SIZE, num_classes=3):
    return validation.admit_boxes(
        np.array(boxes, float).reshape(-1, 4), np.array(labels, int), sizes, num_classes, describe
    )


@pytest.mark.parametrize(("boxes", "labels"), [(GOOD, [0, 2]), ([], [])])
def test_good_boxes_pass_untouched(boxes, labels):
    validation = Validation()
    clipped, kept = admit(validation, boxes, labels)
    assert clipped.dtype == np.float32
    np.testing.assert_array_equal(clipped, np.reshape(boxes, (-1, 4)))
    assert kept.shape == (len(boxes),)
    assert kept.all()
    assert validation.tally.counts() == {}
    assert str(validation.tally) == "nothing left out"


FAULTS = [
    ([0, 0, np.nan, 4], 0, "non-finite boxes", "non-finite coordinate"),
    ([0, 0, np.inf, 4], 0, "non-finite boxes", "non-finite coordinate"),
    ([5, 0, 4, 4], 0, "inverted boxes", r"x2 < x1 .*is the box format right\?"),
    ([0, 5, 4, 4], 0, "inverted boxes", "y2 < y1"),
    ([0, 0, 4, 4], 3, "labels that are no class", r"outside 0\.\.2.* label 3"),
    ([0, 0, 4, 4], -1, "labels that are no class", r"outside 0\.\.2.* label -1"),
]


@pytest.mark.parametrize(("box", "label", "kind", "complaint"), FAULTS)
def test_a_fault_is_named_or_counted(box, label, kind, complaint):
    with pytest.raises(ValueError, match=rf"^set\.json: image 7, row 2 .*{complaint}"):
        admit(Validation(), [*GOOD, box], [0, 2, label])
    validation = Validation("skip")
    _, kept = admit(validation, [*GOOD, box], [0, 2, label])
    np.testing.assert_array_equal(kept, [True, True, False])
    assert validation.tally.counts() == {kind: 1}
    assert "set.json: image 7, row 2" in str(validation.tally)


def test_an_object_with_two_faults_is_counted_once():
    validation = Validation("skip")
    _, kept = admit(validation, [[np.nan, 0, 4, 4], [5, 0, 4, 4]], [-1, 9])
    assert not kept.any()
    assert validation.tally.counts() == {"non-finite boxes": 1, "inverted boxes": 1}


def test_classes_may_be_unknown_but_never_negative():
    assert admit(Validation(), GOOD, [0, 1000], num_classes=None)[1].all()
    with pytest.raises(ValueError, match="label below 0"):
        admit(Validation(), GOOD, [0, -1], num_classes=None)


def test_boxes_without_area_in_their_image_are_counted_whatever_the_policy(caplog):
    boxes = [[-5, 1, 50, 6], [3, 3, 3, 5], [20, 0, 30, 5], [0, -9, 5, 0], [2, 2, 2 + 1e-9, 4], [0, 0, 1e300, 1]]
    for on_error in ("raise", "skip"):
        validation = Validation(on_error)
        with caplog.at_level(logging.WARNING, logger="tfdetr_keras"):
            clipped, kept = admit(validation, boxes, [0] * 6)
        np.testing.assert_array_equal(kept, [True, False, False, False, False, True])
        np.testing.assert_array_equal(clipped[[0, 5]], [[0, 1, 20, 6], [0, 0, 20, 1]])
        assert validation.tally.counts() == {EMPTY_BOX: 4}
        assert (
            validation.tally.descriptions(EMPTY_BOX)[1]
            == "set.json: image 7, row 2 has the box [20.0, 0.0, 30.0, 5.0] (xyxy)"
        )
    assert len([record for record in caplog.records if EMPTY_BOX in record.getMessage()]) == 2  # the first of each


@given(
    hnp.arrays(float, st.tuples(st.integers(0, 6), st.just(4)), elements=st.floats(width=64)),
    st.lists(st.integers(-2, 4), min_size=6, max_size=6),
)
def test_whatever_comes_is_kept_sound_or_counted(boxes, labels):
    validation = Validation("skip")
    clipped, kept = admit(validation, boxes, labels[: len(boxes)])
    assert kept.sum() + sum(validation.tally.counts().values()) == len(boxes)
    sound = clipped[kept]
    assert np.isfinite(sound).all()
    assert (sound[:, :2] < sound[:, 2:]).all()
    assert (sound >= 0).all()
    assert (sound <= [20, 8, 20, 8]).all()


def test_a_thing_counts_once_however_often_it_is_met():
    tally = Tally()
    threads = [threading.Thread(target=lambda: [tally.add("files", f"{n}") for n in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.counts() == {"files": 200}
    assert tally.descriptions("images") == []


def test_what_is_kept_stands_apart_from_what_is_left_out():
    validation = Validation("skip")
    validation.tally.add("odd files", "a.xml")
    assert str(validation.tally) == "nothing left out\nnoticed 1 odd files, e.g. a.xml"
    validation.refuse("bad files", "b.xml")
    validation.tally.add("odd files", "c.xml")
    assert validation.tally.counts() == {"odd files": 2, "bad files": 1}
    assert validation.tally.left_out() == {"bad files": ["b.xml"]}
    assert validation.tally.noticed() == {"odd files": ["a.xml", "c.xml"]}
    assert str(validation.tally) == "1 bad files, e.g. b.xml\nnoticed 2 odd files, e.g. a.xml"


def test_no_other_policy():
    with pytest.raises(ValueError, match='"raise" or "skip", not \'ignore\''):
        Validation("ignore")


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("xyxy", [2, 3, 6, 9]), ("xywh", [2, 3, 4, 6]), ("cxcywh", [4, 6, 4, 6]), ("yxyx", [3, 2, 9, 6])],
)
def test_every_box_format(box_format, box):
    np.testing.assert_array_equal(to_xyxy([box], box_format), [[2, 3, 6, 9]])
    relative = np.array([box]) / ([10, 20, 10, 20] if box_format == "yxyx" else [20, 10, 20, 10])
    np.testing.assert_allclose(to_xyxy(relative, box_format, (10, 20)), [[2, 3, 6, 9]], rtol=1e-12)
    np.testing.assert_allclose(to_xyxy(relative, box_format, [(10, 20)]), [[2, 3, 6, 9]], rtol=1e-12)
    assert to_xyxy([], box_format).shape == (0, 4)


def test_no_other_box_format():
    with pytest.raises(ValueError, match=r"box_format must be one of .* not 'ltrb'"):
        to_xyxy([[1, 2, 3, 4]], "ltrb")
    with pytest.raises(ValueError, match=r"\(objects, 4\), not \(1, 5\)"):
        to_xyxy([[1, 2, 3, 4, 5]], "xyxy")
