"""`model.detect`: images as people have them."""

import http.server
import sys
import threading
import types

import keras
import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.boxes import iou
from tfdetr_keras.data.image_files import records_of

SIZE = (64, 128)
HEIGHT, WIDTH = 87, 74  # of the image


@pytest.fixture(scope="module")
def detector():
    return td.DETR.from_pretrained("detr-tiny")


@pytest.fixture(scope="module")
def image():
    """Drawn shapes, and the record that they come from."""
    records, _ = td.data.load_shapes(1, seed=8, size=(64, 96))
    [record] = records.as_numpy_iterator()
    assert record["image"].shape == (HEIGHT, WIDTH, 3)
    return record


def assert_equal(found, expected):
    assert found.names == expected.names
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.image, expected.image)


def test_it_finds_the_shapes(detector, image):
    found = detector.detect(image["image"], SIZE)
    assert isinstance(found, td.Detections)
    assert sorted(found.labels) == sorted(image["labels"])
    assert (np.diff(found.scores) <= 0).all()
    for row in found:
        truth = image["boxes"][image["labels"] == row["label"]]
        assert iou(np.float32([row["box"]]), truth).numpy().max() > 0.5
        assert detector.id2label[row["label"]] == row["name"]
    assert str(found).splitlines()[0] == f"{len(found)} objects in {HEIGHT} × {WIDTH} pixels"
    assert f"{found.scores[0]:.2f}  {found.names[0]}  [" in str(found)


def test_the_same_image_in_every_form(detector, image, tmp_path):
    pixels = image["image"]
    Image.fromarray(pixels).save(tmp_path / "shapes.png")
    expected = detector.detect(pixels, SIZE)
    assert len(expected)
    forms = [str(tmp_path / "shapes.png"), tmp_path / "shapes.png", Image.fromarray(pixels)]
    for form in forms:
        assert_equal(detector.detect(form, SIZE), expected)
    several = detector.detect([*forms, pixels[:, ::-1]], SIZE)
    assert len(several) == 4
    for found in several[:3]:
        assert_equal(found, expected)
    assert not np.array_equal(several[3].boxes, expected.boxes)
    assert detector.detect([]) == []


def test_it_is_what_detect_finds(detector, image, tmp_path):
    Image.fromarray(image["image"]).save(tmp_path / "shapes.png")
    records, _ = td.data.load_images(tmp_path)
    [expected] = td.detect(detector, records, SIZE, threshold=0.3)
    found = detector.detect(tmp_path / "shapes.png", SIZE, threshold=0.3)
    order = np.argsort(-expected["scores"], kind="stable")
    np.testing.assert_array_equal(found.scores, expected["scores"][order])
    np.testing.assert_array_equal(found.boxes, expected["boxes"][order])


def test_a_canvas_as_in_training(detector, image, tmp_path):
    """Padding changes the answers a little: a model is asked as it was trained."""
    Image.fromarray(image["image"]).save(tmp_path / "shapes.png")
    records, _ = td.data.load_images(tmp_path)
    canvas = (128, 160)
    [expected] = td.detect(detector, records, SIZE, pad_to=canvas, threshold=0.3)
    found = detector.detect(tmp_path / "shapes.png", SIZE, 0.3, pad_to=canvas)
    np.testing.assert_array_equal(found.scores, np.sort(expected["scores"])[::-1])
    assert not np.array_equal(found.scores, detector.detect(tmp_path / "shapes.png", SIZE, 0.3).scores)
    attended = detector.detect(image["image"], SIZE, 0.3, attention=True, pad_to=canvas)
    np.testing.assert_allclose(attended.scores, found.scores, atol=1e-5)
    # Nothing is attended to outside of the image, and what is inside is all that is given.
    np.testing.assert_allclose(attended.attention.sum((1, 2)), 1, atol=1e-5)
    # What would be larger than the canvas is made smaller: 75 x 64 becomes 64 x 54.
    small = td.Preprocessing((64, 54), "stretch", pad_to=(64, 64))
    for attention in (False, True):
        fitted = detector.detect(image["image"], SIZE, 0.0, attention=attention, pad_to=(64, 64))
        expected = detector.detect(image["image"], threshold=0.0, preprocessing=small)
        np.testing.assert_allclose(fitted.scores, expected.scores, atol=1e-5)
    stride = 8  # of detr-tiny, in pixels of the resized image: 64 wide, 87 · 64 / 74 = 75 high
    assert attended.attention.shape[1:] == (-(-75 // stride), 64 // stride)


def test_greyscale_and_a_threshold(detector, image):
    grey = image["image"].mean(-1).astype(np.uint8)
    assert detector.detect(grey, SIZE, threshold=0.0).image.shape == (HEIGHT, WIDTH, 3)
    everything = detector.detect(image["image"], SIZE, threshold=0.0)
    assert len(everything) == detector.config.num_queries
    assert len(detector.detect(image["image"], SIZE, threshold=0.999999)) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", r"^nowhere\.png cannot be read: No such file"),
        (np.zeros((4, 4, 3), np.float32), r"uint8, levels 0 … 255, not \(4, 4, 3\) of float32"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \(1, 4, 4, 3\) of uint8"),
        (7, "an image is"),
        ("https://example.org/a.png", "set urls=True to have it fetched"),
    ],
)
def test_what_is_no_image(detector, source, message):
    with pytest.raises(ValueError, match=message):
        detector.detect([source])


def test_a_file_that_is_no_image(detector, tmp_path):
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(ValueError, match=r"a\.jpg is not an image that can be read"):
        detector.detect(tmp_path / "a.jpg")


def test_urls_where_they_are_allowed(detector, image, tmp_path, monkeypatch):
    Image.fromarray(image["image"]).save(tmp_path / "shapes.png")
    (tmp_path / "large.png").write_bytes(b"\0" * 2000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_address[1]}"
        expected = detector.detect(tmp_path / "shapes.png", SIZE)
        assert_equal(detector.detect(f"{place}/shapes.png", SIZE, urls=True), expected)
        with pytest.raises(ValueError, match=r"nothing\.png could not be fetched: .*404"):
            detector.detect(f"{place}/nothing.png", urls=True)
        monkeypatch.setattr("tfdetr_keras.data.images.LARGEST_FILE", 1000)
        with pytest.raises(ValueError, match=r"large\.png is larger than"):
            detector.detect(f"{place}/large.png", urls=True)
        server.shutdown()


def test_the_graph_is_traced_once_and_saved_nowhere(image, tmp_path):
    detector = td.DETR.from_pretrained("detr-tiny")
    detector.detect(image["image"], SIZE)
    [graph] = detector._inference_graphs.values()
    for side in (40, 50):
        detector.detect(image["image"][:side], SIZE)
    assert graph.experimental_get_tracing_count() == 1
    detector.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert_equal(again.detect(image["image"], SIZE), detector.detect(image["image"], SIZE))


def test_supervisions_detections(detector, image, monkeypatch):
    found = detector.detect(image["image"], SIZE)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="install supervision first"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))  # takes the same keywords
    handed = found.to_supervision()
    assert set(handed) == {"xyxy", "mask", "confidence", "class_id", "data"}
    assert handed["mask"] is None
    np.testing.assert_array_equal(handed["xyxy"], found.boxes)
    assert handed["data"]["class_name"].tolist() == found.names


@pytest.mark.parametrize("attention", [False, True])
def test_boxes_are_clipped_to_the_image_and_post_process_leaves_them(detector, image, attention):
    pixels = np.ascontiguousarray(image["image"][8:40, 20:60])  # which cuts through objects
    found = detector.detect(pixels, SIZE, threshold=0.0, attention=attention)
    [(inputs, _)] = td.data.prepare(records_of([pixels]), 1, size=SIZE)
    outputs = detector({key: value.numpy() for key, value in inputs.items()})
    [whole] = td.post_process(outputs, [pixels.shape[:2]], threshold=0.0)
    whole = whole["boxes"][np.argsort(-whole["scores"], kind="stable")]
    clipped = np.clip(whole, 0, [40, 32, 40, 32])
    assert (clipped != whole).any()
    np.testing.assert_allclose(found.boxes, clipped, rtol=0, atol=1e-3)
    assert found.boxes.min() == 0
    assert found.boxes.dtype == np.float32


def test_the_ap_is_of_boxes_as_the_model_gives_them(detector, image):
    """So that it is that of other evaluations of DETR, which do not clip."""
    records = records_of([np.ascontiguousarray(image["image"][8:40, 20:60])])
    names = list(detector.id2label.values())
    evaluator = td.evaluation.Evaluator(records, names, size=SIZE)
    evaluator(detector)
    assert evaluator.detections[0]["boxes"].min() < 0
