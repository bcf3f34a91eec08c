"""Detections as people use them: indexed, printed, shown in a notebook, and handed to COCO's tools."""

import base64
import contextlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tfdetr_keras import Detections, Segments, notebook

HEIGHT, WIDTH = 40, 60


def detections(count=4, masks=False, names=("cat", "dog"), image=None):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (count, 2))
    labels = np.arange(count) % len(names)
    return Detections(
        scores=np.linspace(0.9, 0.6, count, dtype=np.float32),
        labels=labels,
        boxes=np.concatenate([corners, corners + rng.uniform(5, 20, (count, 2))], 1).astype(np.float32),
        names=[names[label] for label in labels],
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8) if image is None else image,
        attention=rng.random((count, 2, 3), np.float32),
        masks=rng.random((count, HEIGHT, WIDTH)) > 0.5 if masks else None,
    )


def test_a_number_gives_what_iteration_gives():
    found = detections()
    rows = list(found)
    assert len(found) == len(rows) == 4
    assert [found[place] for place in range(4)] == rows
    assert found[-1] == rows[-1]
    assert found[np.int64(2)] == rows[2]
    assert found[found.scores.argmax()] == rows[0]


@pytest.mark.parametrize("place", [4, -5])
def test_a_number_out_of_range(place):
    with pytest.raises(IndexError):
        detections()[place]


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 3),
        slice(None, None, -1),
        slice(9, 12),
        np.array([True, False, True, False]),
        [False, True, False, True],
        np.array([3, 0, 0]),
        [-1],
        [],
        np.zeros(4, bool),
    ],
    ids=str,
)
def test_some_are_detections_of_the_same_image(index):
    found = detections(masks=True)
    some = found[index]
    places = np.arange(4)[index if isinstance(index, slice) else np.array(index, None if len(index) else int)]
    assert isinstance(some, Detections)
    assert list(some) == [found[int(place)] for place in places]
    for name in ("attention", "masks"):
        np.testing.assert_array_equal(getattr(some, name), getattr(found, name)[places])
    assert some.image is found.image


def test_those_of_a_high_score():
    found = detections()
    assert [row["score"] for row in found[found.scores > 0.75]] == found.scores[:2].tolist()
    assert len(found[found.scores > 2]) == 0
    nothing = detections(0)
    assert len(nothing[nothing.scores > 0.5]) == 0


@pytest.mark.parametrize("index", ["cat", 0.5, [0.5], True, None, np.eye(4, dtype=bool)], ids=str)
def test_what_is_no_index(index):
    with pytest.raises(TypeError, match="indexed by"):
        detections()[index]


def test_a_mask_of_another_length():
    with pytest.raises(IndexError):
        detections()[np.ones(5, bool)]


def ground_truth(category_ids=(7, 9)):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 31, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": number, "name": str(number)} for number in category_ids],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@pytest.mark.parametrize("category_ids", [[7, 9], {0: 7, 1: 9}], ids=["list", "mapping"])
def test_pycocotools_reads_the_boxes(category_ids, tmp_path):
    found = detections()
    rows = found.to_coco(31, category_ids)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        read = ground_truth().loadRes(str(path))
    annotations = read.loadAnns(read.getAnnIds(imgIds=[31]))
    assert [a["category_id"] for a in annotations] == [7, 9, 7, 9]
    for annotation, row in zip(annotations, found, strict=True):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], row["box"], rtol=1e-6)
        assert annotation["score"] == row["score"]


def test_pycocotools_reads_the_masks(tmp_path):
    found = detections(masks=True)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found.to_coco(31, [7, 9], masks=True)))
    with contextlib.redirect_stdout(io.StringIO()):
        read = ground_truth().loadRes(str(path))
    for annotation, mask in zip(read.loadAnns(read.getAnnIds()), found.masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        assert annotation["area"] == mask.sum()


def test_labels_are_the_categories_by_default():
    assert [row["category_id"] for row in detections().to_coco(0)] == [0, 1, 0, 1]
    assert detections(0).to_coco(0) == []


@pytest.mark.parametrize("category_ids", [[7], {0: 7}], ids=["list", "mapping"])
def test_a_label_without_a_category(category_ids):
    with pytest.raises(ValueError, match="label 1"):
        detections().to_coco(0, category_ids)


def test_masks_that_are_not_there():
    with pytest.raises(ValueError, match="have no masks"):
        detections().to_coco(0, masks=True)


class Reader(HTMLParser):
    """Tags and texts of a piece of HTML; tags must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts, self.pictures = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def picture_in(html):
    kind, content = read(html).pictures[0].split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_repr_is_one_short_line_without_arrays():
    found = detections(30, masks=True)
    assert repr(found) == "<Detections of 30 objects in 40 × 60 pixels: 15 cat, 15 dog; with masks and attention>"
    assert "array" not in repr(found)
    assert repr(detections(0)).startswith("<Detections of 0 objects in 40 × 60 pixels")
    many = detections(12, names=[f"c{number}" for number in range(12)])
    assert repr(many).count("1 c") == 5
    assert "7 of 7 other classes" in repr(many)


def test_a_notebook_shows_a_picture_with_the_boxes_and_a_table():
    found = detections(3, image=np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    html = found._repr_html_()
    shown = read(html)
    assert shown.texts.count("cat") == 2
    assert "0.90" in shown.texts
    picture = np.asarray(picture_in(html).convert("RGB"), int)
    assert picture.shape[1] / picture.shape[0] == WIDTH / HEIGHT
    assert (np.ptp(picture, axis=-1) > 100).any()  # frames in colour on grey


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (20, 20), (21, 21), (22, 20), (32, 20)])
def test_a_long_table_is_cut(count, rows):
    html = detections(count)._repr_html_()
    assert len(re.findall(r"<td[^>]*>0\.\d\d</td>", html)) == rows
    assert (f"… {count - rows} more" in html) == (count > rows)


def test_names_are_escaped():
    name = "<script>alert('x')</script> & \"co\""
    for html in (detections(names=[name])._repr_html_(), segments(name)._repr_html_()):
        shown = read(html)
        assert "script" not in shown.tags
        assert name in shown.texts


def test_a_picture_is_small_whatever_is_in_it():
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    html = detections(30, image=noise)._repr_html_()
    assert len(html) < 80_000
    assert max(picture_in(html).size) == notebook.LONGEST


def segments(name="sky"):
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    ids[:, :15], ids[:10, 30:] = 1, 2
    info = [{"id": number, "label_id": 0, "was_fused": False, "score": 0.9} for number in (1, 2)]
    return Segments(ids, info, [name], np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def test_segments():
    assert repr(segments()) == "<Segments: 2 in 40 × 60 pixels: 2 sky>"
    html = segments()._repr_html_()
    assert {"25.0 %", "12.5 %"} <= set(read(html).texts)
    picture = np.asarray(picture_in(html).convert("RGB"), int)
    assert np.ptp(picture[picture.shape[0] // 2, picture.shape[1] // 8]) > 20  # tinted
    nothing = Segments(np.full((HEIGHT, WIDTH), -1, np.int32), [], ["sky"], segments().image)
    assert repr(nothing) == "<Segments: 0 in 40 × 60 pixels>"
    assert "table" not in read(nothing._repr_html_()).tags
