"""LW-DETR and RF-DETR in training beside transformers: three groups of queries, each stage, loss, gradient, statistic.

In training mode transformers is right, see `tests/reference/group_detr.py`; images are square for RF-DETR, and no
padding is chosen. Both sides run in float64, but for heads and losses of ours. Measured on a CPU: stages differ by at
most 1.8e-6 of their largest value, logits and boxes by 9e-6, losses by 3.3e-7, all gradients together by 1.2e-6 of
their norm, each of them by 9e-7 of the largest one's.
"""

import numpy as np
import pytest
import tensorflow as tf
from members import CASES
from ports import copy_of, torch_names
from some_slow import some_slow

from port_weights.schemes import detect_scheme

NAMES = ("LWDETR", "LWDETR-two-levels", "RFDETR", "RFDETR-global")
STAGE, OUTPUT, LOSS, GRADIENT, STATISTICS = 1e-5, 3e-5, 3e-6, 5e-6, 1e-6
ONES = ("logits", "boxes")  # stages whose differences are not relative


@pytest.fixture(scope="module", params=some_slow(NAMES, "LWDETR-two-levels"))
def both(request, port, pytorch, answers):
    case = CASES[request.param]
    batch, targets = case.training_batch()
    batch["pixel_values"] = batch["pixel_values"].astype(np.float64)
    theirs = pytorch.call("group_detr:in_training", case.reference, batch, targets)
    model = copy_of(port(case), dtype="float64")
    variables = {variable.path.split("/", 1)[1]: variable.value for variable in model.trainable_variables}
    with tf.GradientTape() as tape:
        stages = model.stages(batch, training=True, targets=targets)
        losses = model.criterion(stages, targets)
    gradients = tape.gradient(losses["loss"], variables, unconnected_gradients="zero")
    gradients = {path: tf.convert_to_tensor(gradient).numpy() for path, gradient in gradients.items()}
    return model, (stages, losses, gradients), theirs, answers(case).arrays("state")


def test_every_stage_of_all_groups(both):
    model, (stages, *_), theirs, _ = both
    assert set(theirs["stages"]) == set(stages) - {"prediction_sets", "groups"}
    assert stages["logits"].shape[1] == model.config.groups * model.config.num_queries == 45
    found = {}
    for name, expected in theirs["stages"].items():
        mine = np.asarray(stages[name], np.float64)
        assert mine.shape == expected.shape, name
        found[name] = np.abs(mine - expected).max() / (1 if name.endswith(ONES) else np.abs(expected).max())
    print("stages", max(value for name, value in found.items() if not name.endswith(ONES)))
    print("outputs", max(value for name, value in found.items() if name.endswith(ONES)))
    wrong = {name: value for name, value in found.items() if value > (OUTPUT if name.endswith(ONES) else STAGE)}
    assert not wrong, wrong


def test_every_loss_of_all_groups(both):
    _, (_, losses, _), theirs, _ = both
    # How many answers are given transformers counts over the groups together.
    expected = {name: value for name, value in theirs["losses"].items() if "cardinality" not in name}
    assert set(losses) == {*expected, "cardinality_error"}
    print("losses", max(abs(float(losses[name]) / value - 1) for name, value in expected.items()))
    for name, value in expected.items():
        np.testing.assert_allclose(float(losses[name]), value, rtol=LOSS, err_msg=name)


def test_every_gradient_of_all_groups(both):
    model, (*_, gradients), theirs, state = both
    found, expected = [], []
    for path, variable, name, layout in torch_names(model, state):
        found.append((path, gradients[path]))
        expected.append(layout.read(theirs["gradients"].pop(name), tuple(variable.shape)))
    assert set(theirs["gradients"]) <= {"model.backbone.backbone.embeddings.mask_token"}
    size = np.linalg.norm([np.linalg.norm(x) for x in expected])
    apart = np.linalg.norm([np.linalg.norm(mine - want) for (_, mine), want in zip(found, expected, strict=True)])
    largest = max(np.abs(x).max() for x in expected)
    worst = max(np.abs(mine - want).max() for (_, mine), want in zip(found, expected, strict=True))
    print("gradients", apart / size, worst / largest)
    assert apart < GRADIENT * size
    for (path, mine), want in zip(found, expected, strict=True):
        assert np.abs(mine - want).max() < GRADIENT * largest, path
        assert want.any() or path.endswith("key/bias"), path


def test_statistics_of_the_batch(both):
    model, _, theirs, state = both
    scheme, count = detect_scheme(state), 0
    for variable in model.weights:
        path = variable.path.split("/", 1)[1]
        if "moving_" in path:
            name, layout = scheme.torch_name(path)
            want = layout.read(theirs["statistics"][name], tuple(variable.shape))
            np.testing.assert_allclose(np.asarray(variable), want, rtol=STATISTICS, atol=STATISTICS, err_msg=name)
            assert not np.array_equal(want, layout.read(state[name], tuple(variable.shape))), name
            count += 1
    assert count == len(theirs["statistics"])
    assert (count > 0) == model.config.is_foldable  # of an RF-DETR there are none
