"""What a run may go on with: its own state, records and settings, in a folder that nobody else trains in."""

import json
import multiprocessing
import shutil
import signal

import keras
import numpy as np
import pytest
import small_run
import tensorflow as tf
from PIL import Image
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.backend.locks import Lock
from tfdetr_keras.training.crowding import tell_crowded_images, watch_crowding
from tfdetr_keras.training.fingerprint import Fingerprint, fingerprint

SETTINGS = small_run.SETTINGS | {
    **{"epochs": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0, "ema_momentum": None, "dropout": 0.0},
    **{"evaluate_every": 1, "color_jitter": False},
}


@pytest.fixture(scope="module", autouse=True)
def smallest(without_tracing):
    with small_run.smallest_preset():
        yield


def coco(folder, count, boxes=1, shift=0):
    """Images with so many boxes each, and their annotations."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        name = f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": 32, "width": 32})
        for row in range(boxes):
            box = [row % 20, 2 + shift, 9, 9]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    (folder / "set.json").write_text(json.dumps(content))
    return td.data.load_coco(folder, folder / "set.json")[0]


def fit(folder, records, validation=None, **changes):
    return td.fit_detector(records, ["a"], folder, validation, **SETTINGS | changes)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run with validation, and its records."""
    place = tmp_path_factory.mktemp("going-on")
    records, held_out = coco(place / "set", 8), coco(place / "held-out", 2)
    return fit(place / "run", records, held_out), records, held_out


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "left",
    some_slow(
        [{"best.keras"}, {"last.keras", "metrics.csv"}, {"metrics.csv"}, {"best.keras", "last.keras", "metrics.csv"}],
        {"last.keras", "metrics.csv"},
        {"metrics.csv"},
    ),
)
def test_a_run_without_its_state_is_not_begun_again(validated, tmp_path, left):
    run, records, held_out = validated
    folder = tmp_path / "copy"
    shutil.copytree(run.path, folder)
    for name in {"best.keras", "last.keras", "metrics.csv", "state.safetensors"} - left:
        (folder / name).unlink()
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"of a run, but not its state\.safetensors.* bring the file back, or") as told:
        fit(folder, records, held_out, resume=True, epochs=2)
    assert all(name in str(told.value) for name in left)
    if "best.keras" in left:
        assert f"tfdetr train --from {folder / 'best.keras'}" in str(told.value)
    assert content_of(folder) == before


def test_validation_or_none_is_as_it_was(validated, tmp_path):
    run, records, _ = validated
    before = content_of(run.path)
    for accept in (False, True):
        with pytest.raises(ValueError, match="was trained with validation records and cannot be resumed without them"):
            fit(run.path, records, resume=True, epochs=2, accept_changed_data=accept)
    assert content_of(run.path) == before


@pytest.mark.slow
def test_a_run_without_validation_goes_on_without(validated, tmp_path):
    _, records, held_out = validated
    fit(tmp_path / "run", records)
    before = content_of(tmp_path / "run")
    with pytest.raises(ValueError, match="was trained without validation records and cannot be resumed with them"):
        fit(tmp_path / "run", records, held_out, resume=True, epochs=2)
    assert content_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 9}, r"training: 9 images, not 8; training: 9 objects, not 8"),
        ({"count": 8, "boxes": 2}, "training: 16 objects, not 8"),
        ({"count": 8, "shift": 1}, "training: other boxes or labels"),
    ],
)
def test_changed_records_are_noticed(validated, tmp_path, changes, message):
    run, _, held_out = validated
    before = content_of(run.path)
    with pytest.raises(ValueError, match=rf"was trained on other data \({message}\): .*set accept_changed_data"):
        fit(run.path, coco(tmp_path / "set", **changes), held_out, resume=True, epochs=2)
    assert content_of(run.path) == before


def test_a_set_that_moved_is_the_same(tmp_path):
    one, other = tmp_path / "one", tmp_path / "deep/er/other"
    other.parent.mkdir(parents=True)
    assert fingerprint(coco(one, 5)) == fingerprint(coco(other, 5))


@pytest.mark.slow
def test_changed_records_that_are_meant_are_told_in_the_report(validated, tmp_path, caplog):
    run, records, held_out = validated
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    more = coco(tmp_path / "set", 9)
    again = fit(folder, more, held_out, resume=True, epochs=2, accept_changed_data=True)
    assert "- training: 9 images, 8 up to epoch 1" in (folder / "report.md").read_text()
    assert "- validation: 2 images\n" in (folder / "report.md").read_text()
    assert "other data than before" in caplog.text
    assert again.config()["records"]["training"]["images"] == 9
    fit(folder, more, held_out, resume=True, epochs=2)  # it knows them now
    with pytest.raises(ValueError, match="was trained on other data"):
        fit(folder, records, held_out, resume=True, epochs=2)


@pytest.mark.slow
def test_fewer_epochs_than_are_done(validated, tmp_path):
    _, records, held_out = validated
    fit(tmp_path / "run", records, held_out, epochs=2)
    before = content_of(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^epochs must be at least 2, which .*run has done already, not 1$"):
        fit(tmp_path / "run", records, held_out, resume=True)
    assert content_of(tmp_path / "run") == before


def test_a_run_of_an_earlier_version_compares_what_it_noted(validated, tmp_path):
    run, records, held_out = validated
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["records"], config["folder"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other data \(training: 9 images, not 8\)"):
        fit(folder, coco(tmp_path / "set", 9), held_out, resume=True)
    with pytest.raises(ValueError, match="cannot be resumed without them"):
        fit(folder, records, resume=True)
    assert fit(folder, records, held_out, resume=True).config()["records"]["training"]["objects"] == 8


def test_two_processes_in_one_folder(validated, tmp_path):
    run, records, held_out = validated
    before = content_of(run.path)
    here, there = multiprocessing.get_context("fork").Pipe()

    def hold():
        lock = Lock(run.path / ".lock")
        there.send(None)
        there.recv()
        lock.release()

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert here.poll(60)
    with pytest.raises(ValueError, match=f"{run.path} is in use, process {process.pid} trains in it: wait until"):
        fit(run.path, records, held_out, resume=True, epochs=2)
    process.kill()
    process.join()
    (run.path / ".partial-state.safetensors").write_text("of a killed process")
    (run.path / ".tmpAb12Cd").write_text("of a killed process")
    fit(run.path, records, held_out, resume=True)
    assert set(content_of(run.path)) == set(before)


def test_stopped_from_python(validated, tmp_path):
    _, records, _ = validated

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="no epoch was finished, and nothing is left of it"):
        fit(tmp_path / "run", records, callbacks=[Stop()])
    assert not (tmp_path / "run").exists()


class Dropped:
    """Something in whose destructor Ctrl-C arrives, where Python drops what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def listening():
    """Python's own handler of Ctrl-C, which a program that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stopped_where_python_drops_what_is_raised(validated, tmp_path):
    _, records, _ = validated
    begun = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)

        def on_epoch_end(self, epoch, logs=None):
            Dropped()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="keeps all finished epochs"):
        fit(tmp_path / "run", records, callbacks=[Stop()], epochs=3)
    assert begun == [0]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_nothing_stops_nothing(validated, tmp_path):
    _, records, _ = validated
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))

    class Press(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            Dropped()

    try:
        fit(tmp_path / "run", records, callbacks=[Press()], epochs=2)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_fingerprints_compare_what_both_know():
    known = Fingerprint(3, 5, "a", "b")
    assert known.differences(known) == []
    assert known.differences(Fingerprint(3)) == Fingerprint(3).differences(known) == []
    assert known.differences(Fingerprint(2)) == ["3 images, not 2"]
    assert known.differences(Fingerprint(3, 5, "c", "b")) == ["images of other names or ids, or in another order"]
    assert Fingerprint.of_json(json.loads(json.dumps(known.as_json()))) == known


def test_fingerprints_of_drawn_and_own_records():
    one, other = (fingerprint(td.data.load_shapes(4, seed=seed)[0]) for seed in (0, 1))
    assert one.images == 4
    assert one.objects is None
    assert one.differences(other) == ["other boxes or labels"]
    assert fingerprint(td.data.load_shapes(4)[0].cache()) == one
    assert fingerprint(td.data.load_shapes(4)[0].map(lambda record: record)) == one
    spec = {
        "image": tf.TensorSpec((4, 4, 3), tf.uint8),
        "boxes": tf.TensorSpec((0, 4)),
        "labels": tf.TensorSpec((0,), tf.int32),
    }
    empty = {key: tf.zeros([side or 0 for side in value.shape], value.dtype) for key, value in spec.items()}
    own = tf.data.Dataset.from_generator(lambda: iter([empty] * 3), output_signature=spec)
    assert fingerprint(td.data.from_dataset(own, {key: key for key in spec}, ["a"], "xyxy", False)[0]) == Fingerprint(3)


def test_more_objects_than_queries_are_told_before_training(tmp_path, caplog):
    records = coco(tmp_path / "set", 3, boxes=7)
    assert tell_crowded_images(records, 7)
    assert not caplog.text
    assert tell_crowded_images(records, 6)
    assert "3 of 3 images have more objects than the model has queries" in caplog.text
    assert f"{tmp_path / 'set' / '000.png'} (image 0) has 7 of 6" in caplog.text
    caplog.clear()
    assert tell_crowded_images(td.data.load_shapes(64)[0], 1)  # whose objects are counted when they are drawn
    assert not caplog.text


def test_more_objects_than_queries_in_records_of_ones_own(caplog):
    element = {"image": np.zeros((3, 8, 8, 3), np.uint8), "labels": np.zeros((3, 7), np.int32)}
    element["boxes"] = np.tile(np.float32([1, 1, 5, 5]), (3, 7, 1))
    own = tf.data.Dataset.from_tensor_slices(element)
    records, _ = td.data.from_dataset(own, {key: key for key in element}, ["a"], "xyxy", False)
    assert not tell_crowded_images(records, 6)
    batches = watch_crowding(td.data.prepare(records, 2, size=(8, 8)), 6)
    assert len(list(batches)) == 2
    assert caplog.text.count("an image has more objects than the model has queries, image 0 has 7 of 6") == 1
