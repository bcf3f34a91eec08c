import keras
import numpy as np
import pytest

from tfdetr_keras.training import Checkpoint, StopAtNonFiniteLoss


class Break(keras.callbacks.Callback):
    """Makes a weight NaN before a step."""

    def __init__(self, epoch, step):
        super().__init__()
        self.at, self.epoch = (epoch, step), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.model.class_head.bias.assign(np.full(self.model.class_head.bias.shape, np.nan))


def test_it_stops_at_the_step_names_the_images_and_leaves_the_checkpoint(compiled, batches, tmp_path):
    model, guard = compiled(), StopAtNonFiniteLoss()
    with pytest.raises(ValueError, match="the loss is nan in epoch 2, step 2") as stopped:
        model.fit(guard.watch(batches), epochs=3, callbacks=[Break(1, 1), guard, Checkpoint(tmp_path)], verbose=0)
    named = str(stopped.value).split("image ids ")[1].split(")")[0].split(", ")
    assert len(named) == 4
    assert set(map(int, named)) <= set(range(8))
    again = compiled()
    assert Checkpoint(tmp_path).restore(again) == 1
    assert np.isfinite(np.array(again.class_head.bias)).all()


def test_the_images_are_those_of_the_step(compiled, batches):
    guard = StopAtNonFiniteLoss()
    guard.on_epoch_begin(6)
    ids = [targets["image_id"].numpy().tolist() for _, targets in guard.watch(batches)]
    assert sorted(ids[0] + ids[1]) == list(range(8))
    guard.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(ValueError, match=f"in epoch 7, step 2 .image ids {', '.join(map(str, ids[1]))}.:"):
        guard.on_train_batch_end(1, {"loss": float("inf")})


def test_several_steps_at_once_and_batches_that_were_not_watched(batches):
    guard = StopAtNonFiniteLoss()
    ids = [targets["image_id"].numpy().tolist() for _, targets in guard.watch(batches)]
    with pytest.raises(ValueError, match=f"image ids {', '.join(map(str, ids[0] + ids[1]))}.:"):
        guard.on_train_batch_end(1, {"loss": float("nan")})
    with pytest.raises(ValueError, match="the loss is nan in epoch 1, step 1: look at"):
        StopAtNonFiniteLoss().on_train_batch_end(0, {"loss": float("nan")})


def test_the_batches_pass_unchanged(batches):
    def taken(dataset):
        return [np.asarray(inputs["pixel_values"]) for inputs, _ in dataset]

    assert StopAtNonFiniteLoss().watch(batches).cardinality() == batches.cardinality()
    assert [x.shape for x in taken(StopAtNonFiniteLoss().watch(batches))] == [x.shape for x in taken(batches)]


@pytest.mark.slow
def test_the_last_step_of_an_epoch_is_seen_before_anything_is_measured_or_written(compiled, batches, tmp_path):
    """Its loss was a number; what it did to the weights is seen by no later one."""
    model, measured = compiled(learning_rate=1e38), []

    class Measures(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            measured.append(epoch)

    callbacks = [StopAtNonFiniteLoss(), Measures(), Checkpoint(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"at the end of epoch 1, \d+ of \d+ arrays of weights and optimizer hold NaN"):
        model.fit(batches.take(1), epochs=2, callbacks=callbacks, validation_data=batches, verbose=0)
    assert not measured
    assert not (tmp_path / "run").exists()
