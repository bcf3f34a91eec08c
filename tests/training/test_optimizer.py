"""AdamW against PyTorch's, variable by variable; what Keras brings along still works."""

import dataclasses

import keras
import numpy as np
import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.training.averages import averaged_weights
from tfdetr_keras.training.checkpoint import save_state
from tfdetr_keras.training.state_file import StateFile, write_arrays

SHAPES = {"model/backbone/stem/kernel": (3, 4), "model/backbone/stem/bias": (4,), "model/encoder/layer0/kernel": (4, 5)}
STEPS = 12


def gradients(step):
    rng = np.random.default_rng(step)
    return [rng.normal(0, 10.0 ** rng.integers(-7, 1), shape).astype(np.float32) for shape in SHAPES.values()]


def start():
    rng = np.random.default_rng(99)
    return [0.01 * rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()]  # moves are not rounded


def variables():
    found = [keras.Variable(value, name="x") for value in start()]
    for variable, path in zip(found, SHAPES, strict=True):
        variable._path = path
    return found


def ours(optimizer, steps=STEPS):
    found = variables()
    for step in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(x) for x in gradients(step)], found)
    return [np.asarray(variable) for variable in found]


@pytest.fixture
def theirs(pytorch):
    """The variables after PyTorch's steps with the learning rates of the three."""

    def step(rates, clip=0.1, decay=1e-4, steps=STEPS, **options):
        taken = [gradients(step) for step in range(steps)]
        return pytorch.call("optimizers:adamw", start(), taken, rates, clip, weight_decay=decay, **options)

    return step


def assert_same(found, expected, way=1e-4):
    """The difference is small beside the way that the variable came."""
    for one, other, before in zip(found, expected, start(), strict=True):
        assert np.linalg.norm(other - before) > 0
        assert np.linalg.norm(one - other) <= way * np.linalg.norm(other - before)


def test_the_defaults_are_the_papers(theirs):
    assert_same(ours(td.AdamW()), theirs([1e-5, 1e-5, 1e-4]))


@pytest.mark.parametrize(
    ("arguments", "reference"),
    [
        ({"learning_rate": 1e-2, "weight_decay": 0.1}, {"rates": [1e-3, 1e-3, 1e-2], "decay": 0.1}),
        ({"learning_rate_multipliers": {}}, {"rates": [1e-4] * 3}),
        ({"learning_rate_multipliers": {"layer0": 3, "stem": 2}}, {"rates": [2e-4, 2e-4, 3e-4]}),
        (
            {"learning_rate_multipliers": {"backbone": 0.5, "backbone/stem/bias": 2.0}},
            {"rates": [5e-5, 2e-4, 1e-4]},
        ),
        ({"global_clipnorm": None, "epsilon": 1e-3}, {"rates": [1e-5, 1e-5, 1e-4], "clip": None, "eps": 1e-3}),
        ({"beta_1": 0.8, "beta_2": 0.95}, {"rates": [1e-5, 1e-5, 1e-4], "betas": (0.8, 0.95)}),
        ({"amsgrad": True}, {"rates": [1e-5, 1e-5, 1e-4], "amsgrad": True}),
        ({"gradient_accumulation_steps": 3}, {"rates": [1e-5, 1e-5, 1e-4], "accumulate": 3}),
    ],
)
def test_arguments(arguments, reference, theirs):
    assert_same(ours(td.AdamW(**arguments)), theirs(**reference))


def test_a_schedule_moves_all_groups(theirs):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [1e-3, 1e-4])
    found = ours(td.AdamW(schedule))
    early = theirs([1e-4, 1e-4, 1e-3], steps=6)
    assert_same(ours(td.AdamW(schedule), steps=6), early)
    assert not np.allclose(found[2], early[2])
    assert np.linalg.norm(found[2] - early[2]) < 0.2 * np.linalg.norm(early[2] - start()[2])


def test_excluded_variables_do_not_decay():
    optimizer = td.AdamW(1e-2, weight_decay=0.5, learning_rate_multipliers={})
    found = variables()
    optimizer.exclude_from_weight_decay(var_list=[found[1]])
    zeros = [keras.ops.zeros(shape) for shape in SHAPES.values()]
    optimizer.apply(zeros, found)
    np.testing.assert_allclose(found[0], start()[0] * (1 - 5e-3), rtol=1e-6)
    np.testing.assert_array_equal(found[1], start()[1])


def test_it_is_saved_with_its_arguments():
    optimizer = td.AdamW(3e-4, {"decoder": 2.0}, weight_decay=0.01, global_clipnorm=None, use_ema=True)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(again) is td.AdamW
    assert again.get_config() == optimizer.get_config()
    assert again.decoupled_weight_decay == 0.01
    assert again.weight_decay is None


def test_a_group_without_variables_is_told(caplog):
    optimizer = td.AdamW(learning_rate_multipliers={"bakbone": 0.1, "stem": 0.1})
    optimizer.build(variables())
    assert "no trainable variable lies in 'bakbone'" in caplog.text
    assert "'stem'" not in caplog.text


@pytest.mark.parametrize("arguments", [{"weight_decay": -1.0}, {"learning_rate_multipliers": {"a": -0.1}}])
def test_below_zero(arguments):
    with pytest.raises(ValueError, match="must not be below 0"):
        td.AdamW(**arguments)


def test_its_name():
    """States of runs name its variables by it."""
    assert td.AdamW(clipnorm=0.1).name == td.AdamW().name == "adamw"
    assert td.AdamW(name="mine").name == "mine"


def test_groups_of_rate_and_decay_are_pytorchs(pytorch):
    """The kernel of the backbone decays, its bias does not, and the encoder has a rate of its own."""
    optimizer = td.AdamW(
        1e-3,
        learning_rate_multipliers={"backbone": 0.1, "encoder/layer0": 0.5},
        weight_decay=0.3,
        weight_decay_exclude=["biases"],
    )
    taken = [gradients(step) for step in range(STEPS)]
    expected = pytorch.call("optimizers:adamw", start(), taken, [1e-4, 1e-4, 5e-4], 0.1, decays=[0.3, 0.0, 0.3])
    assert_same(ours(optimizer), expected)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("restart", [None, 6])
@pytest.mark.parametrize("ramp", [0, 4])
def test_averages_follow_their_formula(ramp, restart, accumulate):
    options = {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
    optimizer = td.AdamW(1e-2, use_ema=True, ema_momentum=0.9, ema_ramp_steps=ramp, ema_restart_at=restart, **options)
    found = variables()
    expected, step = [np.asarray(one) for one in found], 0
    for batch in range(1, STEPS + 1):
        optimizer.apply([keras.ops.convert_to_tensor(x) for x in gradients(batch)], found)
        if batch % accumulate:
            continue
        step += 1
        share = 0.1 + 0.9 * np.exp(-step / ramp) if ramp else 1.0 if step == 1 else 0.1
        if restart and batch > restart:
            since = (batch - restart) // accumulate
            share = 1.0 if since == 1 else 0.1 + 0.9 * np.exp(-since / ramp) if ramp else 0.1
        expected = [before + share * (np.asarray(now) - before) for before, now in zip(expected, found, strict=True)]
    for (variable, average), one, other in zip(optimizer.averages(), found, expected, strict=True):
        assert variable is one
        np.testing.assert_allclose(np.asarray(average), other, rtol=1e-5, atol=1e-8)


def test_statistics_are_averaged_with_the_model(tmp_path):
    """Keras' own `use_ema` averages trainable variables alone; a detector then is given statistics of other weights."""
    keras.utils.set_random_seed(0)
    backbone = dataclasses.replace(SMALLEST.backbone, batch_norm="trainable")
    model = td.DETR(dataclasses.replace(SMALLEST, backbone=backbone))
    optimizer = td.AdamW(1e-3, use_ema=True, ema_momentum=0.9, ema_ramp_steps=3)
    model.compile(optimizer, jit_compile=False)
    statistics = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    means = [layer.moving_mean for layer in statistics]
    expected = [np.asarray(one) for one in means]
    pixels = np.random.default_rng(0).normal(size=(4, 2, 64, 64, 3)).astype(np.float32)
    targets = {"labels": np.zeros((2, 1), np.int32), "boxes": np.full((2, 1, 4), 0.5, np.float32)}
    for step, batch in enumerate(pixels, start=1):
        model.train_on_batch(batch, targets)
        share = 0.1 + 0.9 * np.exp(-step / 3)
        expected = [before + share * (np.asarray(now) - before) for before, now in zip(expected, means, strict=True)]
    averages = {id(variable): average for variable, average in optimizer.averages()}
    assert len(averages) == len(model.trainable_variables) + 2 * len(means)
    assert not {id(variable) for variable in optimizer.variables} & {id(variable) for variable in model.variables}
    for mean, one in zip(means, expected, strict=True):
        np.testing.assert_allclose(np.asarray(averages[id(mean)]), one, rtol=1e-5, atol=1e-6)
    before = [np.asarray(one) for one in means]
    with averaged_weights(model):
        np.testing.assert_array_equal(np.asarray(means[0]), np.asarray(averages[id(means[0])]))
    np.testing.assert_array_equal(np.asarray(means[0]), before[0])
    model.save(tmp_path / "compiled.keras")
    again = td.load_model(tmp_path / "compiled.keras")
    for (_, one), (_, other) in zip(optimizer.averages(), again.optimizer.averages(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ema_ramp_steps": 5}, "ema_ramp_steps=5 needs averages: use_ema=True"),
        ({"ema_ramp_steps": -1, "use_ema": True}, "ema_ramp_steps must be a whole number of at least 0"),
        ({"ema_restart_at": 0, "use_ema": True}, "ema_restart_at must be a whole number of at least 1"),
        ({"weight_decay_exclude": "norms"}, "weight_decay_exclude must be a list of names"),
        ({"weight_decay_exclude": [3]}, "weight_decay_exclude must be a list of names"),
    ],
)
def test_averages_and_exclusions_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        td.AdamW(**arguments)


def test_a_state_without_averages_of_statistics_is_continued(tmp_path):
    """Those of earlier versions, which averaged trainable weights alone."""

    def compiled():
        backbone = dataclasses.replace(SMALLEST.backbone, batch_norm="trainable")
        model = td.DETR(dataclasses.replace(SMALLEST, backbone=backbone))
        model.compile(td.AdamW(use_ema=True, ema_momentum=0.9), jit_compile=False)
        return model

    keras.utils.set_random_seed(0)
    model = compiled()
    path = tmp_path / "state.safetensors"
    save_state(model, path, {"history": [{"loss": 1.0}], "best": None})
    state = StateFile(path)
    arrays = {name: array for name, array in state.arrays() if "moving_mean_average" not in name}
    arrays = {name: array for name, array in arrays.items() if "moving_variance_average" not in name}
    assert len(arrays) < len(state.shapes)
    write_arrays(path, arrays, state.notes)
    again = compiled()
    assert td.training.Checkpoint(tmp_path).restore(again) == 1
    for variable, average in again.optimizer.averages():
        if "moving_" in variable.path:
            np.testing.assert_array_equal(np.asarray(average), np.asarray(variable))
