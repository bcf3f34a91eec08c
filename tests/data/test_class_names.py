"""Class names stay what was written, and hold in a file with one a line and in tables."""

import json
import string

import numpy as np
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.data import from_dataset, load_coco, load_shapes, load_voc, load_yolo
from tfdetr_keras.data.class_names import RENAMED, UNUSED_NAME, distinct_names, tidy_names
from tfdetr_keras.data.yolo_description import DEEPEST, read_description

ANY_NAME = st.text(max_size=12) | st.text(" \t\r\n\v\f\x1c\x85\u2028\xa0ab|<", max_size=6)


@settings(max_examples=600, deadline=None)
@given(st.lists(ANY_NAME | st.sampled_from(["a", "a (2)", UNUSED_NAME]), max_size=6))
@example(["a", "a", "a (2)", "a"])
def test_names_hold_in_a_file_and_a_dict_or_are_refused(names):
    try:
        tidy = tidy_names(names)
    except ValueError as error:
        assert str(error).startswith("class_names: the name of class ")  # noqa: PT017
        return
    assert "".join(f"{name}\n" for name in tidy).splitlines() == tidy
    assert "".join(f"{name}\n" for name in tidy).encode().decode().split("\n")[:-1] == tidy
    used = [name for name in tidy if name != UNUSED_NAME]
    assert len(set(used)) == len(used)
    assert len(tidy) == len(names)
    assert tidy_names(tidy) == tidy
    if len(set(names)) == len(names) and all(name.isprintable() and name == name.strip() for name in names):
        assert tidy == names


def test_the_first_of_a_name_keeps_it():
    assert distinct_names(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (3)", "a (2)", "a (4)"]
    assert distinct_names([UNUSED_NAME] * 2) == [UNUSED_NAME] * 2


@pytest.fixture
def described(tmp_path):
    def described(text):
        (tmp_path / "data.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return described


# What YAML 1.1 takes for truth values, numbers, dates, nothing and infinity.
WORDS = ["yes", "No", "off", "on", "y", "n", "010", "0x1F", "12:30", "1e3", "1_000", "1.50", "null", "~", ".inf"]
WORDS += ["2020-01-01", "<<", "=", "true", ".nan", "0b11", "+1", "-0"]


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_names_are_what_is_written(described, quote):
    quoted = [f"{quote}{word}{quote}" for word in WORDS]
    for names in ("".join(f"\n- {word}" for word in quoted), f"[{', '.join(quoted)}]"):
        assert read_description(described(f"names: {names}"))[0]["names"] == WORDS
    numbered = "".join(f"\n  {number}: {word}" for number, word in enumerate(quoted))
    assert read_description(described(f"names:{numbered}"))[0]["names"] == WORDS


# Of these the dumper makes line breaks within quotes, which YAML folds into blanks.
FOLDED = set("\x85\u2028\u2029")
PLAIN = st.text(string.ascii_letters + string.digits + "._-:+~!@%^&=<>/\\ ", min_size=1, max_size=10)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | PLAIN | st.text(min_size=1, max_size=8), min_size=1, max_size=6))
def test_every_name_comes_back_from_yaml(tmp_path_factory, names):
    """As a dumper writes it, quoted where it must be; JSON, which is YAML, too."""
    assume(not FOLDED & set("".join(names)))
    folder = tmp_path_factory.mktemp("set")
    for text in (yaml.safe_dump({"names": names}, allow_unicode=True), json.dumps({"names": names})):
        try:
            (folder / "data.yaml").write_text(text, encoding="utf-8")
        except UnicodeEncodeError:
            return
        try:
            found = read_description(folder)[0]["names"]
        except ValueError as error:
            assert "is not valid YAML" in str(error)  # noqa: PT017
        else:
            assert found == names


TOKENS = ["names", ":", " ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "a", "0", ",", "'", '"', "!!python/name:os "]
TOKENS += ["!!int ", "? ", "| ", "> ", "#", "<<", "kpt_shape", "[2, 3]", "---", "...", "\\x", "\t", "%", "@"]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join) | st.binary(max_size=40))
def test_whatever_a_description_is_it_is_read_or_explained(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "data.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        found, _ = read_description(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder))  # noqa: PT017
    else:
        assert all(isinstance(name, str) for name in found.get("names", []))


def bomb(levels=9, width=9):
    lines = ['a0: &a0 ["x"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"names: *a{levels - 1}"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (bomb(), r"has the alias \*a0: write out"),
        ("names: &n [a]\nothers: *n", r"has the alias \*n: write out"),
        ("names: " + "[" * 100_000, f"more than {DEEPEST} lists or mappings within one another"),
        ("names: " + "{a: " * 5000, f"more than {DEEPEST} lists or mappings within one another"),
        ("- " * 5000 + "a", f"more than {DEEPEST} lists or mappings within one another"),
        ("names: {0: a, 0: b}", "has the key '0' twice"),
        ("names: [a]\nnames: [b]", "has the key 'names' twice"),
        ("names: [a, [b]]", r"the name of class 1 is \['b'\], not a text: put it in quotes"),
        ("names: [a, {b: c}]", "the name of class 1 is .*, not a text"),
        ("? [a]\n: b", "a key that is a list or mapping"),
        ('names: ["a", ""]', r"the name of class 1, '', is empty"),
        ('names: ["a", " \\n"]', "the name of class 1, .* is empty"),
        ('names: ["a\\0"]', "the name of class 0, .* has a control character"),
        ("names: [a]\ntrain: " + "x" * 5000, "which does not exist"),
        ('names: [a]\ntrain: "a\\0b"', "which does not exist"),
    ],
)
def test_what_is_no_description_is_refused_at_once(described, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_yolo(described(text))


def test_names_of_each_reader_are_fit_and_what_changed_is_told(tmp_path):
    """Of YOLO, COCO, VOC and datasets."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/7.png")
    (tmp_path / "labels/7.txt").write_text("2 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text('names: [car, "a\\tb", car]')
    categories = [{"id": number, "name": name} for number, name in enumerate(["car", "a\tb", "car"])]
    images = [{"id": 7, "file_name": "7.png", "height": 20, "width": 40}]
    objects = [{"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 10]}]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": objects}))
    sets = [load_yolo(tmp_path), load_coco(tmp_path / "images", tmp_path / "set.json")]
    fields = {key: key for key in ("image", "boxes", "labels")}
    sets.append(from_dataset(load_shapes(1)[0], fields, ["car", "a\tb", "car"], "xyxy", False))
    for dataset, names in sets:
        assert names == ["car", "a b", "car (2)"]
        assert len(dataset.tally.descriptions(RENAMED)) == 2
    for dataset, _ in sets[:2]:
        (record,) = dataset.as_numpy_iterator()
        assert record["labels"].tolist() == [2]
    page = "<annotation><filename>7.png</filename><object><name>a\tb </name><bndbox>{}</bndbox></object></annotation>"
    sides = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    (tmp_path / "labels/7.xml").write_text(page.format(sides))
    for given_names in (None, ["a b"], ["a\tb"]):
        dataset, names = load_voc(tmp_path / "images", tmp_path / "labels", class_names=given_names)
        assert names == ["a b"]
        np.testing.assert_array_equal(next(dataset.as_numpy_iterator())["labels"], [0])


def test_names_in_a_dataset_are_found_as_they_are_written():
    import tensorflow as tf

    element = {"image": np.zeros((8, 8, 3), np.uint8), "boxes": [[1.0, 1, 4, 4]] * 3, "labels": ["a\tb", "a b", " c"]}
    fields = {key: key for key in element}
    dataset, names = from_dataset(tf.data.Dataset.from_tensors(element), fields, ["c ", "a\tb"], "xyxy", False)
    assert names == ["c", "a b"]
    assert next(dataset.as_numpy_iterator())["labels"].tolist() == [1, 1, 0]
