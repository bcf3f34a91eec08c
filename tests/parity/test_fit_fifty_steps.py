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
import torch
import transformers
from references import Pair, hugging_face_losses, hugging_face_stages, torch_inputs

import tfdetr_keras as td
from port_weights.port import to_torch
from port_weights.reference import load_weights, reference_model, reference_scheme
from tfdetr_keras.evaluation import coco_metrics, evaluate_detections
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


def torch_pair(tiny):
    model = keras_model(tiny)
    reference = reference_model(model.config)
    load_weights(reference, to_torch(model, reference_scheme(model.config)))
    return Pair(reference, model)


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
def theirs(tiny, training, held_out):
    @functools.cache
    def run(accumulate):
        pair = torch_pair(tiny)
        model = pair.torch.train()
        optimizer = torch_optimizer(pair)
        averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_MOMENTUM)
        )
        losses, norms = [], []
        for step, (inputs, targets) in enumerate(training.take(STEPS).as_numpy_iterator(), start=1):
            loss = hugging_face_losses(hugging_face_stages(model, *torch_inputs(inputs)), targets)["loss"]
            (loss / accumulate).backward()
            losses.append(loss.item())
            if step % accumulate == 0:
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
                optimizer.step()
                optimizer.zero_grad()
            if step >= accumulate:
                averaged.update_parameters(model)
        assert min(norms) < MAX_NORM < max(norms)
        scores = [torch_ap(one.eval(), held_out) for one in (model, averaged.module)]
        return Run(losses, torch_weights(pair, model), torch_weights(pair, averaged.module), *scores)

    return run


def torch_optimizer(pair):
    """AdamW over all that Keras trains, a tenth of the learning rate in the backbone."""
    trained = {name for *_, name, _ in pair.torch_names()}
    groups = {BACKBONE_RATE: [], RATE: []}
    for name, parameter in pair.torch.named_parameters():
        assert name in trained
        parameter.requires_grad_(True)  # transformers 5 freezes the whole backbone, by an error in a name
        groups[BACKBONE_RATE if "backbone" in name else RATE].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for rate, parameters in groups.items()], weight_decay=DECAY
    )


def torch_weights(pair, model):
    """PyTorch's weights by Keras path and in Keras' layout."""
    weights = model.state_dict()
    return {
        path: layout.read(weights[name].numpy().copy(), tuple(variable.shape))
        for path, variable, name, layout in pair.torch_names()
    }


@torch.no_grad()
def torch_ap(model, records):
    """COCO's AP of a Hugging Face model, by its own post-processing."""
    processor, detections = transformers.DetrImageProcessorPil(), []
    for inputs, targets in td.data.prepare(records, 32, **INPUT).as_numpy_iterator():
        sizes = torch.from_numpy(targets["orig_size"])
        found = processor.post_process_object_detection(model(*torch_inputs(inputs)), 0.0, sizes)
        detections += [{"image_id": key} | one for key, one in zip(targets["image_id"], found, strict=True)]
    return coco_metrics(records.as_numpy_iterator(), detections, CLASSES)["AP"]


def ways(got, expected, start, pair):
    found = {}
    for path, after in expected.items():
        if pair.has_effect(path):
            found[path] = np.linalg.norm(got[path] - after) / np.linalg.norm(after - start[path])
    return found


@pytest.mark.parametrize("averaging", [False, True], ids=["plain", "ema"])
@pytest.mark.parametrize("accumulate", [1, 2], ids=["each-batch", "accumulated"])
def test_losses_weights_and_ap_stay_together(ours, theirs, tiny, held_out, accumulate, averaging):
    keras_side, torch_side = ours(accumulate, averaging), theirs(accumulate)
    assert len(keras_side.losses) == STEPS
    np.testing.assert_allclose(keras_side.losses, torch_side.losses, rtol=LOSS)
    pair = torch_pair(tiny)
    assert max(ways(keras_side.weights, torch_side.weights, tiny[0], pair).values()) < WAY
    before = torch_ap(pair.torch, held_out)
    assert torch_side.ap > 0.5
    assert abs(torch_side.ap - before) > 0.003  # the weights have gone somewhere
    assert abs(keras_side.ap - torch_side.ap) <= AP
    if averaging:
        assert max(ways(keras_side.averages, torch_side.averages, tiny[0], pair).values()) < WAY
        assert abs(keras_side.averages_ap - torch_side.averages_ap) <= AP
        assert torch_side.averages_ap != torch_side.ap
        np.testing.assert_allclose(keras_side.losses, ours(accumulate, False).losses, rtol=LOSS)
