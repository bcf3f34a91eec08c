"""What `compile` is given: the loss is the model's own, and Keras' metrics do not fit a set of queries."""

import keras
import numpy as np
import pytest
from keras import ops

import tfdetr_keras as td
from tfdetr_keras.models import DETR


@pytest.fixture
def models(make_model):
    model = make_model()
    return {"detr": model, "pretraining": td.BackbonePretraining(model)}


KINDS = ["detr", "pretraining"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"loss": keras.losses.MeanSquaredError()},
        {"loss": lambda true, predicted: 0.0},
        {"loss": {"logits": "mse"}},
        {"loss_weights": [1.0, 2.0]},
    ],
    ids=lambda options: str(next(iter(options))),
)
def test_a_loss_is_refused(models, kind, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"compile\({name}=.*leave {name} out.*the model's own") as error:
        models[kind].compile("adam", **options)
    assert kind == "pretraining" or "model.criterion = td.SetCriterion(…)" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize(
    "metrics",
    [["accuracy"], [keras.metrics.Mean()], {"logits": "accuracy"}, [lambda true, predicted: 0.0]],
    ids=("name", "metric", "by-output", "function"),
)
def test_metrics_are_refused(models, kind, name, metrics):
    with pytest.raises(ValueError, match=rf"compile\({name}=.*td\.training\.AveragePrecision"):
        models[kind].compile("adam", **{name: metrics})


def test_keras_has_no_way_to_give_a_metric_our_outputs(make_model, make_batch):
    """So that nothing is refused which would work: Keras looks for a target of each output's name."""
    model = make_model()

    class Counted(keras.metrics.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            """Takes anything."""

        def result(self):
            return ops.zeros(())

    for metrics in ([Counted()], {"logits": Counted()}, [Counted(), None, None, None]):
        keras.Model.compile(model, "sgd", metrics=metrics, jit_compile=False, run_eagerly=True)
        with pytest.raises((ValueError, KeyError)):
            model.train_on_batch(*make_batch())


@pytest.mark.parametrize("kind", KINDS)
def test_what_means_no_loss_and_no_metrics(models, kind, make_batch):
    model = models[kind]
    model.compile("sgd", None, None, None, None, run_eagerly=False, steps_per_execution=1, jit_compile=False)
    model.compile(optimizer="sgd", loss=None, metrics=[], weighted_metrics={}, auto_scale_loss=True)
    assert np.isfinite(model.fit(*make_batch(), verbose=0).history["loss"][0])


def test_a_metric_of_ones_own(make_model, make_batch):
    """As the error advises: `compute_metrics` of a subclass."""

    class Confident(DETR):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            best = ops.max(ops.softmax(y_pred["logits"])[..., :-1], axis=-1)
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "confidence": ops.mean(best)}

    model = Confident(make_model().config)
    model.compile("sgd")
    logs = model.evaluate(*make_batch(), verbose=0, return_dict=True)
    assert 0 < logs["confidence"] < 1
    assert {"loss", "loss_ce", "confidence"} <= set(logs)


@pytest.mark.slow
def test_a_compiled_model_comes_back_compiled(make_model, make_batch, tmp_path):
    model = make_model()
    model.compile(td.AdamW(1e-3), steps_per_execution=2, jit_compile=False)
    model.train_on_batch(*make_batch())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.steps_per_execution, loaded.jit_compile) == (2, False)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    both = [one.train_on_batch(*make_batch(), return_dict=True)["loss"] for one in (model, loaded)]
    assert both[0] == pytest.approx(both[1], rel=1e-6)


def test_a_file_of_earlier_versions_with_a_loss_that_had_no_effect(make_model, make_batch, tmp_path):
    model = make_model()
    keras.Model.compile(model, "sgd", loss="mse", loss_weights=[1.0], metrics=["accuracy"])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compiled
    assert np.isfinite(loaded.evaluate(*make_batch(), verbose=0, return_dict=True)["loss"])


def test_losses_of_float16_are_scaled(make_model):
    model = make_model(dtype="mixed_float16")
    model.compile("sgd")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.compile("sgd", auto_scale_loss=False)
    assert not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
