"""Where `tfdetr resume` looks for a run's data: where it was, moved along with the run, or where it is told."""

import os

import pytest

from tfdetr_keras.cli.moved_data import find_moved, told_places, with_whole_paths


def description(training, validation=None):
    return {"training": training, "validation": validation, "val_split": None if validation else 0.2}


def test_paths_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"data": "tfrecord", "annotations": "set/train-*", "images": "/photos", "class_names": ["a"], "split": "x"}
    expected = given | {"annotations": str(tmp_path / "set/train-*")}
    assert with_whole_paths(given) == expected
    assert with_whole_paths({"annotations": "gs://bucket/train-*"}) == {"annotations": "gs://bucket/train-*"}


@pytest.mark.parametrize("run", ["run", "runs/first", "photos/../run"])
def test_a_tree_that_moved_as_a_whole(tmp_path, run):
    (tmp_path / "new/photos").mkdir(parents=True)
    (tmp_path / "new/train.json").touch()
    for number in range(2):
        (tmp_path / f"new/part-{number}").touch()
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    training = {"data": "coco", "images": f"{old}/photos", "annotations": f"{old}/train.json"}
    validation = {"data": "tfrecord", "annotations": f"{old}/part-*"}
    found = find_moved(description(training, validation), tmp_path / "new" / run, os.path.join(old, run))
    assert found["training"] == {"data": "coco", "images": f"{new}/photos", "annotations": f"{new}/train.json"}
    assert found["validation"] == {"data": "tfrecord", "annotations": f"{new}/part-*"}


def test_what_is_where_it_was_stays_and_what_is_nowhere_too(tmp_path):
    for place in ("old", "new"):
        (tmp_path / place / "photos").mkdir(parents=True)
    training = {"data": "coco", "images": str(tmp_path / "old/photos"), "annotations": str(tmp_path / "old/none.json")}
    assert find_moved(description(training), tmp_path / "new/run", str(tmp_path / "old/run"))["training"] == training
    assert find_moved(description(training), tmp_path / "new/run", None)["training"] == training  # an earlier version


def test_told_places():
    training = {"data": "coco", "images": "/a/photos", "annotations": "/a/train.json"}
    validation = {"data": "coco", "images": "/a/photos", "annotations": "/a/val.json"}
    found = told_places(description(training, validation), {"images": "/b", "annotations": None}, {})
    assert found["training"] == training | {"images": "/b"}
    assert found["validation"] == validation | {"images": "/b"}  # shared with the training set, so moved with it
    found = told_places(description(training, validation), {"images": "/b"}, {"images": "/c", "annotations": "/c.json"})
    assert found["validation"] == {"data": "coco", "images": "/c", "annotations": "/c.json"}
    assert found["training"] == training | {"images": "/b"}


@pytest.mark.parametrize(
    ("training", "validation", "own", "message"),
    [
        ({"segments": "/x"}, {}, {}, "--segments: the run's data of the kind coco has none"),
        ({}, {"image_set": "/x"}, {"data": "coco", "images": "/p"}, "--val-image-set: the run's data"),
        ({}, {"images": "/x"}, None, "--val-images: the run has no validation set of its own"),
    ],
)
def test_places_of_what_there_is_not(training, validation, own, message):
    with pytest.raises(ValueError, match=message):
        told_places(description({"data": "coco", "images": "/p", "annotations": "/a"}, own), training, validation)
