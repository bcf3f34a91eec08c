import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras import data
from tfdetr_keras.data.files import ImageFiles, Objects, read_files
from tfdetr_keras.data.record import reader_of
from tfdetr_keras.data.split import _lot, split_by_count
from tfdetr_keras.data.validation import Validation


def ids(records):
    return [int(record["image_id"]) for record in records]


def test_both_parts_are_the_whole_and_the_same_every_time():
    records, _ = data.load_shapes(20, size=(16, 24))
    training, validation = data.split(records, 0.25, seed=3)
    assert len(ids(validation)) == 5
    assert sorted(ids(training) + ids(validation)) == list(range(20))
    assert ids(validation) == ids(data.split(records, 0.25, seed=3)[1]) != ids(data.split(records, 0.25, seed=4)[1])
    assert ids(validation) != list(range(15, 20))  # by lot: files often stand in the order of their classes


def test_parts_are_readers_datasets():
    """Counted, shuffled by name, and trained on."""
    training, validation = data.split(data.load_shapes(12, size=(16, 24))[0], 0.5)
    assert reader_of(training).entries.cardinality() == reader_of(validation).entries.cardinality() == 6
    batches = data.prepare(training, 3, training=True, size=(24, 24))
    assert batches.cardinality() == 2
    seen = np.concatenate([targets["image_id"] for _, targets in batches])
    assert sorted(seen) == sorted(ids(training))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_part_is_empty(share):
    parts = data.split(data.load_shapes(3, size=(16, 24))[0], share)
    assert sorted(len(ids(part)) for part in parts) == [1, 2]


def test_what_cannot_be_split():
    records, _ = data.load_shapes(3)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="share must be between 0 and 1"):
            data.split(records, share)
    with pytest.raises(ValueError, match="1 records cannot be split in two"):
        data.split(data.load_shapes(1)[0], 0.5)
    with pytest.raises(ValueError, match="must come straight from a reader"):
        data.split(records.take(2), 0.5)
    spec = {
        "image": tf.TensorSpec((4, 4, 3), tf.uint8),
        "boxes": tf.TensorSpec((0, 4)),
        "labels": tf.TensorSpec((0,), tf.int32),
    }
    unknown = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    dataset, _ = data.from_dataset(unknown, {key: key for key in spec}, ["a"], "xyxy", False)
    with pytest.raises(ValueError, match="number of records is not known"):
        data.split(dataset, 0.5)


def names_of(records):
    return [outline["name"].decode() for outline in reader_of(records).outlines()]


@pytest.fixture
def of_files(monkeypatch):
    """Makes records of files that are not there, whose names alone matter."""
    monkeypatch.setattr("tfdetr_keras.data.files.os.path.isfile", lambda path: True)

    def make(names, root="set"):
        files = ImageFiles([Path(root, name) for name in names], np.arange(len(names)), np.full((len(names), 2), -1))
        nothing = np.zeros(0, np.int64)
        objects = Objects(nothing, np.zeros((0, 4), np.float32), nothing, nothing.astype(bool), nothing.astype(float))
        return read_files(files, objects, Validation(), root=Path(root))

    return make


NUMBERED = [f"{number:06d}.jpg" for number in range(200)]
OF_WORDS = [f"{chr(97 + number % 26)}{chr(97 + number // 26)}-photo.jpg" for number in range(200)]
EVERY_TENTH = [f"clip/frame{number * 10}.png" for number in range(200)]


@pytest.mark.parametrize("names", [NUMBERED, OF_WORDS, EVERY_TENTH], ids=["numbered", "words", "every tenth"])
def test_an_added_or_removed_image_moves_no_other(of_files, names):
    parts = [set(names_of(part)) for part in data.split(of_files(names), 0.2, seed=1)]
    for place in (0, 77, 199):
        for others in (names[:place] + names[place + 1 :], [*names[:place], f"new{place}.jpg", *names[place:]]):
            now = [set(names_of(part)) for part in data.split(of_files(others), 0.2, seed=1)]
            assert now[0] & set(names) == parts[0] & set(others)
            assert now[1] & set(names) == parts[1] & set(others)


def test_where_the_set_lies_and_how_it_is_sorted_does_not_matter(of_files):
    expected = set(names_of(data.split(of_files(NUMBERED), 0.2)[1]))
    assert set(names_of(data.split(of_files(NUMBERED, "elsewhere/photos"), 0.2)[1])) == expected
    assert set(names_of(data.split(of_files(NUMBERED[::-1]), 0.2)[1])) == expected
    assert set(names_of(data.split(of_files(NUMBERED), 0.2, seed=1)[1])) != expected


@pytest.mark.parametrize("seed", range(3))
def test_of_numbered_images_each_ten_give_their_share(of_files, seed):
    second = names_of(data.split(of_files(NUMBERED), 0.3, seed)[1])
    assert np.bincount([int(name[:6]) // 10 for name in second], minlength=20).tolist() == [3] * 20


def test_of_any_names_the_share_is_met_on_average():
    """Of two hundred names the standard deviation is 5.7; of the mean of four hundred draws 0.28."""
    for names in (OF_WORDS, EVERY_TENTH):
        counts = [sum(_lot(name.encode(), b"%d" % seed) < 0.2 for name in names) for seed in range(400)]
        assert abs(np.mean(counts) - 40) < 4 * 0.28
        assert np.std(counts) < 8


def test_parts_of_parts_are_drawn_anew(of_files):
    rest, test = data.split(of_files(OF_WORDS), 0.2)
    training, validation = data.split(rest, 0.25)
    assert len(names_of(validation)) == pytest.approx(40, abs=4 * 5.5)
    assert sorted(names_of(training) + names_of(validation) + names_of(test)) == sorted(OF_WORDS)


def test_records_of_coco_are_split_by_their_file_names(tmp_path):
    def load(names):
        images = [{"id": place, "file_name": name, "height": 8, "width": 8} for place, name in enumerate(names)]
        content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": []}
        (tmp_path / "set.json").write_text(json.dumps(content))
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        return data.load_coco(tmp_path, tmp_path / "set.json")[0]

    names = [f"{word}.png" for word in ("alpha", "bravo", "charlie", "delta", "echo", "golf", "hotel", "india")]
    before = set(names_of(data.split(load(names[1:]), 0.4)[1]))
    assert set(names_of(data.split(load(names), 0.4)[1])) - {names[0]} == before


def test_runs_of_earlier_versions_keep_their_split():
    """By NumPy's own lots, as they were drawn then."""
    lots = np.random.default_rng(3).permutation(20)[:5]
    assert ids(split_by_count(data.load_shapes(20, size=(16, 24))[0], 0.25, seed=3)[1]) == sorted(lots.tolist())
