"""Which rows of a class head stay: a written-out table of cases, and the rules as properties of any names."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdetr_keras.models.class_rows import match_rows
from tfdetr_keras.names.classes import names_by_id

SHAPES = ["circle", "square", "triangle"]
COCO = ["N/A", "person", "bicycle", "N/A", "traffic light"]


def rows(known, wanted, are_named=True, keep_head=None):
    return match_rows(dict(enumerate(known)), dict(enumerate(wanted)), are_named, keep_head)


@pytest.mark.parametrize(
    ("known", "wanted", "expected"),
    [
        (SHAPES, ["star", "cross", "ring"], (None, None, None)),
        (SHAPES, ["triangle", "circle", "square"], (2, 0, 1)),
        (SHAPES, ["square"], (1,)),
        (SHAPES, ["star", "square", "ring", "circle"], (None, 1, None, 0)),
        (SHAPES, SHAPES, (0, 1, 2)),
        # As people write one name.
        (["traffic light", "TV", "dining table"], ["Traffic_Light", "diningtable", "tv"], (0, 2, 1)),
        (["traffic-light"], [" traffic  light "], (0,)),
        # As COCO and Pascal VOC call one class; a name that is there as it is written comes first.
        (["motorbike", "aeroplane", "sofa", "tvmonitor"], ["airplane", "motorcycle", "tv", "Couch"], (1, 0, 3, 2)),
        (["sofa", "couch"], ["couch", "sofa"], (1, 0)),
        (["sofa", "cat"], ["sofa bed", "couch"], (None, 0)),
        # As written comes before as meant, and a minus is no hyphen.
        (["ram", "Ram"], ["Ram", "ram"], (1, 0)),
        (["shift -1", "shift 1"], ["shift 1", "shift -1"], (1, 0)),
        # Gaps go to gaps: of their own id first, then in order.
        (COCO, COCO, (0, 1, 2, 3, 4)),
        (COCO, ["person", "N/A", "traffic light"], (1, 0, 4)),
        (COCO, ["bicycle", "person", "dog", "N/A"], (2, 1, None, 3)),
        # A row is taken once.
        (["cat"], ["cat", "cat"], (0, None)),
        # Classes that nobody named: as many are the same ones, and of others nothing is known.
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], (0, 1)),
        (["class_0", "class_1"], ["cat", "dog"], (0, 1)),
        (["class_0", "N/A"], ["cat", "dog"], (0, 1)),
        (["class_0", "class_1"], ["cat", "dog", "cow"], (None, None, None)),
        (["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"], (1, 0)),
        (["LABEL_1", "LABEL_0"], ["cat", "dog"], (None, None)),  # not by their ids, so somebody named them
        (["0", "1"], ["cat", "dog"], (None, None)),  # digits are names, too
    ],
)
def test_rows_by_name(known, wanted, expected):
    matched = rows(known, wanted)
    assert matched.sources == expected
    assert matched.no_object


def test_a_number_of_classes_without_names():
    assert rows(SHAPES, ["class_0", "class_1", "class_2"], are_named=False).are_all
    for count in (2, 4):
        assert set(rows(SHAPES, [f"class_{i}" for i in range(count)], are_named=False).sources) == {None}
    unnamed = ["class_0", "class_1", "class_2"]
    assert set(rows(unnamed, unnamed[:2], are_named=False).sources) == {None}


def test_the_caller_decides():
    kept = rows(SHAPES, ["star", "cross", "ring"], keep_head=True)
    assert kept.are_all
    assert "circle is now star" in kept.story()
    for wanted in (SHAPES, ["star", "circle"]):
        fresh = rows(SHAPES, wanted, keep_head=False)
        assert set(fresh.sources) == {None}
        assert not fresh.no_object
    with pytest.raises(ValueError, match="keep_head=True keeps the class head as it is, of 3 classes, and 2 are"):
        rows(SHAPES, ["circle", "square"], keep_head=True)
    for value in ("yes", 2, "no"):
        with pytest.raises(ValueError, match="keep_head must be True, False or None"):
            rows(SHAPES, SHAPES, keep_head=value)


def test_the_line_says_what_became_of_each_class():
    assert rows(SHAPES, SHAPES).story() is None
    line = rows(SHAPES, ["star", "Square", "circle"]).story()
    assert "kept by name: Square (there square), circle" in line
    assert "drawn anew: star" in line
    assert "left out: triangle" in line
    none = rows(SHAPES, ["star", "cross", "ring"]).story()
    assert all(name in none for name in ("star", "cross", "ring", *SHAPES))
    many = [f"thing {letter}{other}" for letter in string.ascii_lowercase[:8] for other in string.ascii_lowercase[:10]]
    line = rows(many, [*many[:70], "new one"]).story()
    assert "kept by name: 70 classes" in line
    assert "drawn anew: new one" in line
    assert len(line) < 300


def test_weights_of_classes_follow_their_rows():
    assert rows(SHAPES, ["star", "triangle", "circle"]).of_weights((2.0, 3.0, 4.0)) == (1.0, 4.0, 2.0)


NAMES = st.lists(st.sampled_from(["cat", "Cat", "dog", "N/A", "a b", "a_b", "x1", "x 1", "", "LABEL_0"]), min_size=1)


@given(NAMES, NAMES)
def test_any_names(known, wanted):
    matched = rows(known, wanted)
    taken = [source for source in matched.sources if source is not None]
    assert len(set(taken)) == len(taken)
    assert len(matched.sources) == len(wanted)
    # By counting: of each name, as many rows are kept as both sides have.
    if matched.reason == "name":
        for name in set(wanted):
            kept = sum(
                known[source] == name
                for source, new in zip(matched.sources, wanted, strict=True)
                if source is not None and new == name
            )
            assert kept == min(known.count(name), wanted.count(name))
    assert isinstance(matched.story() or "", str)


@pytest.mark.parametrize(
    "given_names",
    [["cat", "dog"], ("cat", "dog"), {0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, {0.0: "cat", 1.0: "dog"}],
)
def test_forms_of_names(given_names):
    assert names_by_id(given_names) == {0: "cat", 1: "dog"}
    assert list(names_by_id(given_names)) == [0, 1]
    assert names_by_id({0: "cat", 1: "dog"}.values()) == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("given_names", "message"),
    [
        ("cat", "id2label must not be a str: give a mapping"),
        ({"cat", "dog"}, "must not be a set"),
        (3, "must not be an int"),
        ({"cat": 0}, "has the id 'cat', which is not a whole number"),
        ({0.5: "cat"}, "has the id 0.5"),
        ({True: "cat"}, "has the id True"),
        ({None: "cat"}, "has the id None"),
        ({0: "cat", "0": "dog"}, "names the id 0 twice"),
        ([None, "cat"], "names the id 0 None"),
        ([["cat"]], "not a text"),
        ([b"cat"], "not a text"),
    ],
)
def test_forms_that_are_none(given_names, message):
    with pytest.raises(ValueError, match=message):
        names_by_id(given_names)
