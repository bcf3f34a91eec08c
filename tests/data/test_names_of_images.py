"""Messages name the file of an image, whatever was done to its records since they were read."""

import json
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras import data
from tfdetr_keras.data.checks import checked_dataset, readable_errors
from tfdetr_keras.data.record import file_of, name_of
from tfdetr_keras.data.tensors import MOST_FILES
from tfdetr_keras.training.non_finite import StopAtNonFiniteLoss

NAMES = {7: "größe 7.png", 30: "b.png", 285: "c.png", 9: "d.png"}


def coco(folder, names=NAMES):
    """A COCO set of these images, with one object more in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names.values():
        Image.new("RGB", (40, 20)).save(folder / name)
    boxes = [(image_id, row) for place, image_id in enumerate(names) for row in range(place + 1)]
    content = {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 40} for i, name in names.items()],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": i, "category_id": 3, "bbox": [2, 2, 9 + row, 9]}
            for number, (i, row) in enumerate(boxes)
        ],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return data.load_coco(folder, folder / "set.json")[0]


CHANGES = {
    "as it was read": lambda records: records,
    "split": lambda records: data.split(records, 0.5)[1],
    "shuffled": lambda records: records.shuffle(4),
    "mapped": lambda records: records.map(lambda record: record | {"boxes": record["boxes"] * 2}),
    "cached": lambda records: records.cache(),
    "sharded": lambda records: records.shard(2, 1),
    "taken and repeated": lambda records: records.skip(1).take(2).repeat(),
    "joined": lambda records: records.concatenate(records),
    "prepared": lambda records: data.prepare(records, 1, size=(20, 40)),
    "prepared for training": lambda records: data.prepare(records, 1, training=True, size=(20, 40)),
    "in buckets, of a cached part": lambda records: data.prepare(
        data.split(records, 0.5)[0].cache(), 1, size=(32, 64), pad_to="buckets", max_boxes=9
    ),
    "checked and watched": lambda records: checked_dataset(
        StopAtNonFiniteLoss().watch(data.prepare(records, 1, size=(20, 40))), 1
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_file_is_known_whatever_was_done(change, tmp_path):
    changed = change(coco(tmp_path))
    for image_id, name in NAMES.items():
        assert file_of(changed, image_id) == str(tmp_path / name)
        assert name_of(changed, np.int64(image_id)) == f"{tmp_path / name} (image {image_id})"
    assert file_of(changed, 1) is None
    assert name_of(changed, 1) == "image 1"


def test_of_two_sets_with_the_same_ids_either_may_be_meant(tmp_path):
    joined = coco(tmp_path / "one").concatenate(coco(tmp_path / "two"))
    assert file_of(joined, 30) == f"{tmp_path / 'one/b.png'} or {tmp_path / 'two/b.png'}" or file_of(joined, 30) == (
        f"{tmp_path / 'two/b.png'} or {tmp_path / 'one/b.png'}"
    )


def test_what_has_no_file():
    shapes, _ = data.load_shapes(3)
    assert file_of(shapes, 0) is None
    assert name_of(shapes.batch(2), 0) == "image 0"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_boxes": 2}, "c.png (image 285) has 3 objects, more than max_boxes = 2: "),
        (
            {"pad_to": [(16, 20), (16, 24)]},
            "größe 7.png (image 7) is 20 x 40 after the resize, larger than pad_to = 16 x 20, 16 x 24",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_an_image_that_does_not_fit(tmp_path, arguments, complaint, cached):
    records = coco(tmp_path)
    batches = data.prepare(records.cache() if cached else records, 1, size=(20, 40), **arguments)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/") as error, readable_errors():
        list(batches)
    assert str(error.value).startswith(str(tmp_path / complaint.split(" (")[0]))
    assert complaint in str(error.value)


def test_a_target_that_is_no_class(tmp_path):
    batches = data.prepare(coco(tmp_path), 2, size=(20, 40))
    complaint = r"targets, image id 7 \(.*größe 7\.png\), row 0: label 0 is not"
    with pytest.raises(ValueError, match=complaint), readable_errors():
        list(checked_dataset(batches, num_classes=0))


def test_a_loss_that_is_no_number(tmp_path):
    guard = StopAtNonFiniteLoss()
    next(iter(guard.watch(data.prepare(coco(tmp_path), 2, size=(20, 40)))))
    with pytest.raises(ValueError, match=r"epoch 1, step 1 \(images .*größe 7\.png \(7\), .*b\.png \(30\)\): look"):
        guard.on_train_batch_end(0, {"loss": float("nan")})


def test_a_summary_without_all_names(tmp_path):
    with pytest.raises(ValueError, match=r"größe 7\.png \(image 7\) has a label outside"):
        data.summarize(coco(tmp_path), [])


def test_records_that_name_their_file():
    """Of TFRecords, say: pixels, boxes and names come together, and are known while they are near."""
    count = MOST_FILES + 10
    elements = {
        "image": np.zeros((count, 1, 1, 3), np.uint8),
        "boxes": np.tile(np.array([[0.0, 0, 1, 1]], np.float32), (count, 1, 1)),
        "labels": np.zeros((count, 1), np.int64),
        "file_name": [f"{place}.jpg" for place in range(count)],
    }
    dataset = tf.data.Dataset.from_tensor_slices(elements)
    records, _ = data.from_dataset(dataset, {key: key for key in elements}, ["a"], "xyxy", relative=False)
    assert file_of(records, 3) is None
    list(records.take(5).batch(2))
    assert name_of(data.prepare(records, 2), 3) == "3.jpg (image 3)"
    for _ in records:
        pass
    assert file_of(records, 0) is None  # forgotten
    assert file_of(records, count - 1) == f"{count - 1}.jpg"


def test_a_fault_of_such_a_record_names_its_file():
    elements = {"image": [b"none"], "boxes": np.zeros((1, 0, 4)), "labels": np.zeros((1, 0), np.int64)}
    dataset = tf.data.Dataset.from_tensor_slices(elements | {"file_name": ["photo.jpg"]})
    fields = {key: key for key in (*elements, "file_name")}
    records, _ = data.from_dataset(dataset, fields, ["a"], "xyxy", relative=False)
    with pytest.raises(ValueError, match=r"^photo\.jpg \(image 0\) is not an image"), readable_errors():
        list(records)


def test_names_cost_next_to_nothing(tmp_path):
    """What is kept for them of a large set is a number an image: the names are those that the reader reads by."""
    reader = coco(tmp_path).reader
    kept = [cell.cell_contents for cell in reader.file_of.__closure__]
    assert {type(part) for part in kept} <= {np.ndarray, type(tf.constant(0))}
    assert sum(sys.getsizeof(part) for part in kept if isinstance(part, np.ndarray)) < 200


def test_it_is_asked_for_in_threads_too(tmp_path):
    records, found = coco(tmp_path), []
    thread = threading.Thread(target=lambda: found.append(file_of(records, 30)))
    thread.start()
    thread.join()
    assert found == [str(tmp_path / "b.png")]
