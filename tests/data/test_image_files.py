import numpy as np
import pytest
from PIL import Image

from tfdetr_keras import data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for number, name in enumerate(("b.png", "a.jpg", "below/c.PNG")):
        Image.fromarray(np.full((8, 10 + number, 3), 10 * number, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_and_files(folder):
    records, paths = data.load_images(folder)
    assert [path.name for path in paths] == ["a.jpg", "b.png", "c.PNG"]
    found = list(records.as_numpy_iterator())
    assert [record["orig_size"].tolist() for record in found] == [[8, 11], [8, 10], [8, 12]]
    assert [int(record["image_id"]) for record in found] == [0, 1, 2]
    assert all(record["boxes"].shape == (0, 4) for record in found)
    records, paths = data.load_images([folder / "b.png", str(folder / "below")])
    assert [path.name for path in paths] == ["b.png", "c.PNG"]
    assert len(list(records)) == 2


def test_they_go_into_batches(folder):
    (inputs, targets), *_ = data.prepare(data.load_images(folder)[0], 3, size=(8, 16))
    assert inputs["pixel_values"].shape == (3, 8, 12, 3)
    assert targets["labels"].shape == (3, 1)


def test_nothing_there(folder):
    with pytest.raises(ValueError, match=r"there is no image or folder .*nowhere"):
        data.load_images(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no image in .*empty"):
        data.load_images(folder / "empty")


def test_an_unreadable_image(folder):
    (folder / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r"a\.jpg is not an image"):
        list(data.load_images(folder)[0])
    records, _ = data.load_images(folder, on_error="skip")
    assert [int(record["image_id"]) for record in records] == [1, 2]
    assert sum(records.tally.counts().values()) == 1
