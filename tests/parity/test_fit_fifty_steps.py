"""Fifty steps of `fit` beside PyTorch's own loop, from a detector that detects: same losses, same AP, same averages.

Both sides start from `detr-tiny`, which is trained on drawn shapes, and take the same batches; the held-out images are
scored by COCO's AP. PyTorch's side is Hugging Face's model, loss and post-processing, `torch.optim.AdamW`
and `torch.optim.swa_utils.AveragedModel`.

What Keras does, and the loop therefore too: gradients of `gradient_accumulation_steps` batches are averaged first and
clipped then; averages of the weights start with a copy after the first update and take one more step after every batch,
whether it moved the weights or not, so that n accumulated batches make a momentum m of an update mⁿ.
"""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from members import DETR as CASE

import tfdetr_keras as td
from port_weights import to_torch
from port_weights.architecture import hugging_face_config
from port_weights.schemes import scheme
from tfdetr_keras.evaluation.coco import coco_metrics, evaluate_detections
from tfdetr_keras.models import DETR

pytestmark = pytest.mark.slow

STEPS, BATCH_SIZE = 50, 8
RATE, BACKBONE_RATE, DECAY, EMA_MOMENTUM = 5e-5, 5e-6, 1e-4, 0.9
# About the norm of an ordinary gradient here: some are clipped and some are not. With DETR's 0.1 all are, and as AdamW
# does not mind a factor, a mean of accumulated gradients would look like their sum.
MAX_NORM = 20.0
# The bars. Measured: losses differ by up to 1e-5, ways by 1 %, AP not at all. At four times this rate training is
# chaotic: rounding alone, PyTorch beside itself included, then moves losses by 1 to 2 % and ways by 10 %.
LOSS, WAY, AP = 1e-4, 0.05, 5e-4

CLASSES, DRAWN, SIDE = ("circle", "square", "triangle"), (48, 64), 64
INPUT = {"size": (SIDE, SIDE), "pad_to": (SIDE, SIDE)}


@pytest.fixture(scope="module")
def tiny():
    """Weights by path that detect already, whose batch norm has statistics of its own; and the architecture."""
    model = DETR.from_pretrained("detr-tiny")
    model.freeze()
    return by_path(model), model.config


@pytest.fixture(scope="module")
def training():
    """Endless training batches, the same at each iteration."""
    records, _ = td.data.load_shapes(STEPS * BATCH_SIZE, 7, CLASSES, DRAWN)
    return td.data.prepare(records.cache(), BATCH_SIZE, training=True, augmentation="flip", repeat=True, **INPUT)


@pytest.fixture(scope="module")
def held_out():
    return td.data.load_shapes(256, 2, CLASSES, DRAWN)[0].cache()


def by_path(model):
    return {variable.path.split("/", 1)[1]: np.array(variable) for variable in model.weights}


def keras_model(tiny):
    """The model, all of which is trained."""
    weights, config = tiny
    model = DETR(config)
    variables = {variable.path.split("/", 1)[1]: variable for variable in model.weights}
    assert set(variables) == set(weights)
    for path, variable in variables.items():
        variable.assign(weights[path])
    return model


IN_MEMORY = scheme("hugging-face", "hugging-face-in-memory", "model.", "model.backbone.model.")


def torch_names(model):
    """For each trainable variable `(path, shape, PyTorch name, layout between the two)`."""
    for variable in model.trainable_variables:
        path = variable.path.split("/", 1)[1]
        yield path, tuple(variable.shape), *IN_MEMORY.torch_name(path)


@dataclasses.dataclass(frozen=True)
class Run:
    """The loss of each batch before its step, and what came out: weights, their averages, the AP of both."""

    losses: list
    weights: dict
    averages: dict
    ap: float
    averages_ap: float


class Recorder(keras.callbacks.Callback):
    """The loss of each batch, and the weights before `fit` exchanges them for their averages."""

    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()  # the logs are means since the last reset

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.weights = by_path(self.model)


@pytest.fixture(scope="module")
def ours(tiny, training, held_out):
    @functools.cache
    def run(accumulate, averaging):
        model = keras_model(tiny)
        options = {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
        options |= {"use_ema": True, "ema_momentum": EMA_MOMENTUM} if averaging else {}
        model.compile(optimizer=td.AdamW(RATE, weight_decay=DECAY, global_clipnorm=MAX_NORM, **options))
        recorder = Recorder()
        scorer = td.training.AveragePrecision(held_out, CLASSES, batch_size=32, **INPUT)
        history = model.fit(training, steps_per_epoch=STEPS, callbacks=[scorer, recorder], verbose=0).history
        after = evaluate_detections(model, held_out, CLASSES, batch_size=32, **INPUT)["AP"]
        return Run(recorder.losses, recorder.weights, by_path(model), history["val_AP"][-1], after)

    return run


@pytest.fixture(scope="module")
def theirs(tiny, training, held_out, pytorch):
    model = keras_model(tiny)
    start = torch_model(model)
    names = list(torch_names(model))

    @functools.cache
    def run(accumulate):
        found = pytorch.call(
            "training:averaged_steps",
            *start,
            batches=list(training.take(STEPS).as_numpy_iterator()),
            held_out=held_out_batches(held_out),
            rates=(BACKBONE_RATE, RATE),
            max_norm=MAX_NORM,
            momentum=EMA_MOMENTUM,
            accumulate=accumulate,
            weight_decay=DECAY,
        )
        assert set(found["trained"]) == {name for *_, name, _ in names}
        assert min(found["norms"]) < MAX_NORM < max(found["norms"])
        weights, averages = (
            {path: layout.read(found[key][name], shape) for path, shape, name, layout in names}
            for key in ("weights", "averages")
        )
        scores = [average_precision(held_out, found[key]) for key in ("detections", "detections_of_averages")]
        return Run(found["losses"], weights, averages, *scores)

    return run


def torch_model(model):
    """Content of `config.json` and weights of the same model in PyTorch."""
    return hugging_face_config(model.config), to_torch(model, IN_MEMORY)


def held_out_batches(records):
    return list(td.data.prepare(records, 32, **INPUT).as_numpy_iterator())


def average_precision(records, detections):
    """COCO's AP."""
    return coco_metrics(records.as_numpy_iterator(), detections, CLASSES)["AP"]


def ways(got, expected, start):
    found = {}
    for path, after in expected.items():
        if CASE.has_effect(path):
            found[path] = np.linalg.norm(got[path] - after) / np.linalg.norm(after - start[path])
    return found


@pytest.mark.parametrize("averaging", [False, True], ids=["plain", "ema"])
@pytest.mark.parametrize("accumulate", [1, 2], ids=["each-batch", "accumulated"])
def test_losses_weights_and_ap_stay_together(ours, theirs, tiny, held_out, pytorch, accumulate, averaging):
    keras_side, torch_side = ours(accumulate, averaging), theirs(accumulate)
    assert len(keras_side.losses) == STEPS
    np.testing.assert_allclose(keras_side.losses, torch_side.losses, rtol=LOSS)
    assert max(ways(keras_side.weights, torch_side.weights, tiny[0]).values()) < WAY
    detections = pytorch.call("training:detections", *torch_model(keras_model(tiny)), held_out_batches(held_out))
    before = average_precision(held_out, detections)
    assert torch_side.ap > 0.5
    assert abs(torch_side.ap - before) > 0.003  # the weights have gone somewhere
    assert abs(keras_side.ap - torch_side.ap) <= AP
    if averaging:
        assert max(ways(keras_side.averages, torch_side.averages, tiny[0]).values()) < WAY
        assert abs(keras_side.averages_ap - torch_side.averages_ap) <= AP
        assert torch_side.averages_ap != torch_side.ap
        np.testing.assert_allclose(keras_side.losses, ours(accumulate, False).losses, rtol=LOSS)
