"""Detection folds batch normalisation by itself, and is the model's as it is now, whatever changed its weights."""

import keras
import numpy as np
import pytest
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.inference.forward_pass import FOLDED_PARTS, forward_function

SIZE = (64, 64)


@pytest.fixture(scope="module")
def records():
    return td.data.load_shapes(3, seed=3, size=(60, 90))[0]


@pytest.fixture
def model():
    return td.DETR.from_pretrained("detr-tiny")


def assert_up_to_date(model, records):
    """What is detected is what the model itself gives, to a rounding."""
    found = list(td.detect(model, records, threshold=-1))
    batches = td.data.prepare(records, 1, preprocessing=model.preprocessing)
    for one, (inputs, targets) in zip(found, batches, strict=True):
        [expected] = td.post_process(model(inputs, training=False), targets["orig_size"].numpy(), -1)
        np.testing.assert_allclose(one["scores"], expected["scores"], rtol=0, atol=1e-4)
    return np.array([one["scores"] for one in found])


def test_equal_to_a_rounding_and_traced_once(model, records):
    assert_up_to_date(model, records)
    assert model.__dict__[FOLDED_PARTS] is not None
    [graph] = model._inference_graphs.values()
    assert_up_to_date(model, records)
    assert graph.experimental_get_tracing_count() == 1


RARER = ("statistics", "permuted", "a training step")


@pytest.mark.parametrize("change", some_slow(["kernel", "a loaded file", *RARER], *RARER))
def test_it_follows_the_weights(model, records, change, tmp_path):
    before = assert_up_to_date(model, records)
    stem = model.backbone.stem
    if change == "kernel":
        stem.convolution.kernel.assign(stem.convolution.kernel * 1.5)
    elif change == "statistics":
        stem.normalization.moving_mean.assign(stem.normalization.moving_mean + 0.5)
    elif change == "permuted":
        kernel = keras.ops.convert_to_numpy(stem.convolution.kernel)
        stem.convolution.kernel.assign(kernel[::-1, ::-1])
    elif change == "a loaded file":
        other = td.from_preset("detr-tiny", num_classes=3)
        other.save_weights(tmp_path / "a.weights.h5")
        model.load_weights(tmp_path / "a.weights.h5")
    else:
        model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
        model.fit(td.data.prepare(records, 3, preprocessing=model.preprocessing), verbose=0)
    assert np.abs(assert_up_to_date(model, records) - before).max() > 1e-3


def test_nothing_of_it_belongs_to_the_model(model, records, tmp_path):
    count = len(model.weights)
    assert_up_to_date(model, records)
    assert len(model.weights) == count
    assert model.backbone.config.batch_norm == "frozen"
    model.save(tmp_path / "a.keras")
    assert len(td.load_model(tmp_path / "a.keras").weights) == count


def test_measuring_and_folded_models_have_no_second_backbone(model, records):
    names = list(model.id2label.values())
    td.evaluation.evaluate_detections(model, records, names)
    assert FOLDED_PARTS not in model.__dict__
    folded = model.fold()
    assert_up_to_date(folded, records)
    assert FOLDED_PARTS not in folded.__dict__


def test_models_of_another_kind_are_run_as_they_are(records):
    class Other(keras.Model):
        def call(self, inputs, training=False):
            shape = (keras.ops.shape(inputs["pixel_values"])[0], 2)
            return {"logits": keras.ops.zeros((*shape, 4)), "pred_boxes": keras.ops.zeros((*shape, 4))}

    spec = td.data.prepare(records, 1, size=SIZE).element_spec[0]
    [(inputs, _)] = td.data.prepare(records, 3, size=SIZE)
    assert forward_function(Other(), spec, None, folded=True)(inputs)["logits"].shape == (3, 2, 4)
