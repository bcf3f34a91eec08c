"""Targets handed to a model that trains with them, as denoising does: in `fit` alone, from whatever `fit` is given."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from small_model import CONFIG
from some_slow import some_slow

from tfdetr_keras.models import DETR

LOSSES = ("loss_ce_denoising_0", "loss_bbox_denoising_0")


class Denoised(DETR):
    """A DETR whose further queries are the targets' boxes themselves, each paired with its object."""

    wants_targets = True
    logged = (*DETR.logged, *LOSSES)

    def _add_parts(self):
        self.seen = []
        self.of_boxes = layers.Dense(self.config.num_logits, name="of_boxes", dtype="float32")

    def build(self, input_shape):
        super().build(input_shape)
        self.of_boxes.build((None, None, 4))

    def _forward(self, inputs, training, attention=False):
        outputs, stages = super()._forward(inputs, training, attention)
        targets = inputs.get("targets")
        self.seen.append((bool(training), targets is not None and {key: x.dtype for key, x in targets.items()}))
        if training:
            boxes = ops.cast(targets["boxes"], "float32")
            batch, count = ops.shape(boxes)[:2]
            objects = ops.broadcast_to(ops.arange(count)[None], (batch, count))
            noised = {"logits": self.of_boxes(boxes)[:, None], "pred_boxes": ops.clip(boxes, 0, 0.9)[:, None] + 0.05}
            outputs["prediction_sets"] = {"denoising": {**noised, "queries": objects[:, None], "objects": objects}}
        return outputs, stages


@pytest.fixture(params=[None, pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def model(request):
    keras.utils.set_random_seed(0)
    model = Denoised(CONFIG, dtype=request.param)
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    @property
    def num_batches(self):
        return 1

    def __getitem__(self, index):
        return self.batch


FORMS = {
    "arrays": lambda batch: {"x": batch[0], "y": batch[1], "batch_size": 2},
    "tf.data": lambda batch: {"x": tf.data.Dataset.from_tensors(batch)},
    "generator": lambda batch: {"x": iter([batch]), "steps_per_epoch": 1},
    "PyDataset": lambda batch: {"x": Batches(batch)},
}


@pytest.mark.parametrize("form", some_slow(FORMS, "arrays", "generator", "PyDataset"))
def test_fit_hands_them_over_and_evaluate_does_not(model, make_batch, form):
    batch = make_batch()
    history = model.fit(**FORMS[form](batch), verbose=0).history
    assert {training for training, _ in model.seen} == {True}
    assert keras.backend.standardize_dtype(model.seen[-1][1]["boxes"]) == "float32"
    # Each box is moved by 0.05 in its four numbers, whatever the policy: bfloat16 would round it.
    boxes, labels = batch[1]["boxes"], batch[1]["labels"]
    moved = np.abs(np.clip(boxes, 0, 0.9) + 0.05 - boxes).sum(-1)[labels >= 0].mean()
    assert history["loss_bbox_denoising_0"] == [pytest.approx(moved, rel=1e-5)]
    model.seen.clear()
    model.evaluate(batch[0], batch[1], batch_size=2, verbose=0)
    model.predict(batch[0], batch_size=2, verbose=0)
    assert {given for _, given in model.seen} == {False}


def test_bare_pixels_and_one_batch(model, make_batch):
    inputs, targets = make_batch()
    first = model.train_on_batch(inputs["pixel_values"], targets, return_dict=True)
    for _ in range(4):
        last = model.train_on_batch(inputs["pixel_values"], targets, return_dict=True)
    assert last["loss_ce_denoising_0"] < first["loss_ce_denoising_0"]  # its own layer learns


def test_stages_take_targets(make_batch):
    inputs, targets = make_batch()
    stages = Denoised(CONFIG).stages(inputs, training=True, targets=targets)
    assert stages["prediction_sets"]["denoising"]["pred_boxes"].shape == (2, 1, 3, 4)
