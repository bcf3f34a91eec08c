"""Training through Keras' own `fit`: what is logged, what is updated, and what bad data is answered with."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras import SetCriterion

# A key's bias shifts all scores of a query alike, which softmax does not see. And the queries enter the first decoder
# layer as zeros, so that its self-attention has the same value everywhere: the value's bias.
WITHOUT_GRADIENT = re.compile(r"key/bias$|decoder/layer0/self_attention/((query|key)/|value/kernel$)")
LOGS = {"loss", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}


def dataset_of(*batches):
    """A dataset whose sizes are unknown until they come, as those of real images are."""
    inputs = {
        "pixel_values": tf.TensorSpec((None, None, None, 3), tf.float32),
        "pixel_mask": tf.TensorSpec((None, None, None), tf.int32),
    }
    targets = {
        "labels": tf.TensorSpec((None, None), tf.int32),
        "boxes": tf.TensorSpec((None, None, 4), tf.float32),
        "image_id": tf.TensorSpec((None,), tf.int64),
    }
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=(inputs, targets))


@pytest.fixture(scope="module")
def batch(make_batch):
    inputs, targets = make_batch()
    return inputs, {**targets, "image_id": np.array([139, 285])}


@pytest.fixture(scope="module")
def trained(make_model, batch, make_batch):
    """A model after ten steps on one batch and one on a larger one, its history, and its weights before."""
    model = make_model(frozen="stem+stage1")
    before = {weight.path: np.array(weight) for weight in model.weights}
    train_step, model.steps_traced = model.train_step, 0

    def counted_step(data):
        model.steps_traced += 1
        return train_step(data)

    model.train_step = counted_step
    inputs, targets = make_batch(batch=1, height=64, width=40)
    larger = inputs, {**targets, "image_id": np.array([7])}
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    history = model.fit(dataset_of(*[batch] * 5), epochs=2, validation_data=dataset_of(batch, larger), verbose=0)
    return model, history.history, before


def changed(batch, part, name, index, value):
    """A batch with one entry changed."""
    inputs, targets = ({key: np.array(array) for key, array in half.items()} for half in batch)
    {"inputs": inputs, "targets": targets}[part][name][index] = value
    return inputs, targets


def test_losses_are_logged_and_go_down(trained):
    _, history, _ = trained
    assert set(history) == LOGS | {f"val_{name}" for name in LOGS}
    assert history["loss"][1] < history["loss"][0]
    assert all(np.isfinite(values).all() for values in history.values())


def test_a_step_changes_what_is_trainable_and_nothing_else(trained):
    model, _, before = trained
    trainable = {weight.path for weight in model.trainable_weights}
    for weight in model.weights:
        is_changed = (np.array(weight) != before[weight.path]).any()
        if not WITHOUT_GRADIENT.search(weight.path):
            assert is_changed == (weight.path in trainable), weight.path


def test_evaluate_gives_the_criterion_of_the_outputs(trained, batch):
    model, _, _ = trained
    expected = model.criterion(model(batch[0]), batch[1])
    logs = model.evaluate(dataset_of(batch, batch, batch), return_dict=True, verbose=0)
    assert set(logs) == LOGS
    for name, value in logs.items():
        assert value == pytest.approx(float(expected[name]), rel=1e-5), name


NAN_BOX = ("targets", "boxes", (0, 1), [0.5, np.nan, 0.1, 0.1])
BAD = {
    "label": (("targets", "labels", (1, 0), 3), "row 0: label 3 is not a class: expected 0 … 2", 1),
    "negative-size": (("targets", "boxes", (0, 1), [0.5, 0.5, -0.1, 0.1]), "row 1: .* negative width or height", 0),
    "pixels": (("targets", "boxes", (0, 2), [320, 240, 64, 48]), "row 2: .* is outside .0, 1.", 0),
    "nan": (NAN_BOX, "row 1: .* is not finite", 0),
}


@pytest.fixture(params=BAD.values(), ids=BAD.keys())
def bad(request, batch):
    """A bad batch, what is to be said of it, and which image of the batch it is."""
    change, message, image = request.param
    return changed(batch, *change), message, image


def test_a_bad_batch_of_a_dataset_is_named_by_its_image_id(trained, batch, bad):
    model, _, _ = trained
    bad_batch, message, image = bad
    expected = f"image id {(139, 285)[image]}, {message}"
    with pytest.raises(ValueError, match=expected):
        model.fit(dataset_of(batch, bad_batch), verbose=0)
    with pytest.raises(ValueError, match=expected):
        model.evaluate(dataset_of(bad_batch), verbose=0)
    with pytest.raises(ValueError, match=expected):
        model.fit(dataset_of(batch), validation_data=dataset_of(bad_batch), verbose=0)


def test_a_bad_batch_of_arrays_is_named_by_its_place(trained, batch, bad):
    model, _, _ = trained
    (inputs, targets), message, image = bad
    targets = {name: targets[name] for name in ("labels", "boxes")}
    good = batch[0], {name: batch[1][name] for name in ("labels", "boxes")}
    for call in (
        lambda: model.fit(inputs, targets, verbose=0),
        lambda: model.fit(*good, validation_data=(inputs, targets), verbose=0),
        lambda: model.evaluate(inputs, targets, verbose=0),
        lambda: model.train_on_batch(inputs, targets),
        lambda: model.test_on_batch(inputs, targets),
    ):
        with pytest.raises(ValueError, match=f"image {image} of the batch, {message}"):
            call()


def test_a_mask_of_another_size_is_found_in_a_dataset(trained, batch):
    model, _, _ = trained
    inputs, targets = batch
    bad_batch = {**inputs, "pixel_mask": inputs["pixel_mask"][:, :-1]}, targets
    message = r"pixel_values is .* = \(2, 32, 48, 3\) but pixel_mask .* = \(2, 31, 48\)"
    with pytest.raises(ValueError, match=message):
        model.fit(dataset_of(batch, bad_batch), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(dataset_of(bad_batch), verbose=0)


def test_a_mask_of_another_size_is_found_in_arrays(make_model, batch):
    model = make_model()
    model.compile(optimizer="sgd")
    inputs, targets = batch
    with pytest.raises(ValueError, match=r"pixel_mask \(.*, 31, 48\) must have the batch, height and width"):
        model.fit({**inputs, "pixel_mask": inputs["pixel_mask"][:, :-1]}, targets, verbose=0)


@pytest.mark.parametrize("targets", [np.zeros((2, 4)), {"labels": np.zeros((2, 1), int)}])
def test_targets_that_are_no_targets(trained, batch, targets):
    with pytest.raises(ValueError, match=r'targets must be \{"labels"'):
        trained[0].fit(batch[0], targets, verbose=0)


def test_sample_weight_is_refused(make_model, batch):
    model = make_model()
    model.compile(optimizer="sgd", run_eagerly=True)
    inputs, targets = batch
    message = r"takes no sample_weight: give fit a dataset of \(inputs, targets\)"
    with pytest.raises(ValueError, match=message):
        model.fit(inputs, targets, sample_weight=np.ones(2), verbose=0)
    weighted = tf.data.Dataset.from_tensors((inputs, targets, np.ones(2)))
    with pytest.raises(ValueError, match=message):
        model.fit(weighted, verbose=0)


def test_switching_auxiliary_outputs_between_fits_changes_the_loss(make_model, batch):
    """Eagerly, as what a traced function has built in is the business of `predict`'s test."""
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    losses = model.criterion(model(batch[0]), batch[1])
    last = sum(w * float(losses[name]) for w, name in ((1, "loss_ce"), (5, "loss_bbox"), (2, "loss_giou")))
    assert model.train_on_batch(*batch, return_dict=True)["loss"] == pytest.approx(float(losses["loss"]), rel=1e-5)
    model.reset_metrics()
    model.auxiliary_outputs = False
    assert model.train_on_batch(*batch, return_dict=True)["loss"] == pytest.approx(last, rel=1e-5)


def test_a_step_is_traced_once(trained):
    """Variables that are made inside a traced function have it traced again, without them."""
    model, _, _ = trained
    assert model.steps_traced == 1
    assert int(model.optimizer.iterations) >= 10


@pytest.mark.slow
def test_switching_auxiliary_outputs_traces_anew(trained, batch):
    model, _, _ = trained
    with_both = model.evaluate(dataset_of(batch), return_dict=True, verbose=0)
    model.auxiliary_outputs = False
    try:
        last = model.evaluate(dataset_of(batch), return_dict=True, verbose=0)
    finally:
        model.auxiliary_outputs = True
    assert last["loss"] < with_both["loss"]
    for name in LOGS - {"loss"}:
        assert last[name] == pytest.approx(with_both[name], rel=1e-5)


@pytest.mark.slow
def test_mixed_precision_and_xla_train_together(make_model, batch):
    """One step each way from the same weights: the same loss, up to bfloat16's rounding."""
    inputs, targets = batch
    expected = float(make_model().criterion(make_model()(inputs), targets)["loss"])
    model = make_model(dtype="mixed_bfloat16", backbone={"batch_norm": "frozen"})
    before = np.array(model.class_head.kernel)
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=True)
    logs = model.train_on_batch(inputs, {name: targets[name] for name in ("labels", "boxes")}, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=0.02)
    assert (np.array(model.class_head.kernel) != before).any()
    assert all(np.isfinite(weight).all() for weight in model.weights)


def test_a_compiled_model_is_saved_with_its_optimizer(trained, batch, tmp_path):
    model, _, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_a_criterion_without_a_no_object_class_is_refused(make_model, batch):
    model = make_model()
    model.criterion = SetCriterion(classification="focal")
    model.compile(optimizer="sgd")
    with pytest.raises(
        ValueError, match=r"DETR's classes are a 'softmax' classification, but its criterion has classification='focal'"
    ):
        model.fit(dataset_of(batch), verbose=0)
