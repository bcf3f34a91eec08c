"""Checkpoints in plain `fit`: what is kept, what is chosen, and what cannot be gone on from."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfdetr_keras.training import AdamW, Checkpoint, averaged_weights
from tfdetr_keras.training.checkpoint import save_state


def weights(model):
    return [np.array(variable) for variable in model.trainable_variables]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_state_is_all_of_model_and_optimizer(compiled, batches, tmp_path):
    """Dropout's seeds, averages, moments, accumulated gradients; that training goes on alike is tested apart."""
    options = {"changes": {"dropout": 0.3}, "use_ema": True, "ema_momentum": 0.9, "gradient_accumulation_steps": 2}
    model, folder = compiled(**options), tmp_path / "new" / "run"
    checkpoint = Checkpoint(folder, averaged=True)
    assert checkpoint.restore(model) == 0
    model.fit(batches, epochs=2, callbacks=[checkpoint], verbose=0)
    again = compiled(**options)
    restored = Checkpoint(folder, averaged=True)
    assert restored.restore(again) == 2
    assert restored.history == checkpoint.history
    logged = {"loss", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}
    assert [set(row) for row in restored.history] == [logged, logged]
    assert int(again.optimizer._iterations) == 4
    save_state(again, tmp_path / "again.safetensors", {})
    expected, found = load_file(folder / "state.safetensors"), load_file(tmp_path / "again.safetensors")
    assert set(found) == set(expected)
    assert len([name for name in found if "seed_generator" in name]) > 3
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    saved = keras.saving.load_model(folder / "last.keras")
    assert_equal(weights(saved), weights(model))  # the averages, which Keras leaves in the model as well
    assert not saved.compiled


@pytest.mark.parametrize(
    ("mode", "figures", "best"),
    [
        ("max", [0.0, 0.0, 0.2, 0.1], 2),
        ("max", [0.0, 0.0, 0.0, 0.0], 3),  # nothing found yet: the one trained longest
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("min", [4.0, 2.0, 3.0, 2.5], 1),
                ("max", [None, 0.3, None, 0.2], 1),
                ("max", [None, float("nan"), 0.1, None], 2),
                ("max", [None, None, None, None], None),
            )
        ),
    ],
)
def test_the_best_model_is_kept(compiled, tmp_path, mode, figures, best):
    model, found = compiled(), []
    checkpoint = Checkpoint(tmp_path, mode=mode, when_best=found.append)
    checkpoint.set_model(model)
    for epoch, figure in enumerate(figures):
        model.class_head.bias.assign(np.full(4, epoch))
        checkpoint.on_epoch_end(epoch, {"loss": 1.0} if figure is None else {"loss": 1.0, "val_AP": figure})
    assert checkpoint.best == best == (found[-1] if found else None)
    assert (tmp_path / "best.keras").exists() == (best is not None)
    if best is not None:
        assert keras.saving.load_model(tmp_path / "best.keras").class_head.bias[0] == best
    assert keras.saving.load_model(tmp_path / "last.keras").class_head.bias[0] == 3
    again = Checkpoint(tmp_path, mode=mode)
    assert again.restore(compiled()) == 4
    assert again.best == best


def test_the_averages_are_what_is_kept(compiled, tmp_path):
    model = compiled(use_ema=True, ema_momentum=0.9)
    checkpoint = Checkpoint(tmp_path, averaged=True)
    with pytest.raises(ValueError, match=r"keeps 0 averages for \d+ trainable weights"), averaged_weights(model):
        pass
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        if "class_head_bias_average" in variable.path:
            variable.assign(np.full(4, 7))
    own = weights(model)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0, {"val_AP": 0.5})
    assert_equal(weights(model), own)
    for name in ("best.keras", "last.keras"):
        assert np.array(keras.saving.load_model(tmp_path / name).class_head.bias).tolist() == [7, 7, 7, 7]
    again = compiled(use_ema=True, ema_momentum=0.9)
    checkpoint.restore(again)
    assert_equal(weights(again), own)


def test_states_that_cannot_be_gone_on_from(compiled, tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.set_model(compiled())
    checkpoint.on_epoch_end(0, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"is of another model or optimizer: 6 variables differ .*class_head"):
        Checkpoint(tmp_path).restore(compiled(("a", "b")))
    with pytest.raises(ValueError, match="is of another model or optimizer"):
        Checkpoint(tmp_path).restore(compiled(use_ema=True))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state\.safetensors is not a complete training state"):
        Checkpoint(tmp_path).restore(compiled())
    with pytest.raises(ValueError, match="the model has no optimizer: call compile first"):
        Checkpoint(tmp_path).restore(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match='mode must be "max" or "min"'):
        Checkpoint(tmp_path, mode="best")


def plain(**options):
    """A compiled model of a few weights, of Keras' own layers."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(40), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(optimizer=AdamW(1e-3, {}, **options), loss="mse", jit_compile=False)
    return model


BATCH = np.ones((4, 3)), np.ones((4, 2))


def trained(folder, epochs=(0,), logs=None, **options):
    """A model whose checkpoint stands in a folder."""
    model, checkpoint = plain(**options), Checkpoint(folder)
    checkpoint.set_model(model)
    for epoch in epochs:
        checkpoint.on_epoch_end(epoch, logs or {"loss": 1.0, "val_AP": 0.5})
    return model, checkpoint


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("left", [("best.keras",), ("last.keras",), ("best.keras", "last.keras")])
def test_models_without_their_state_are_not_written_over(tmp_path, left):
    trained(tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in left:
            path.unlink()
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=f"holds {' and '.join(left)} of a run, but not its state.safetensors.*start"):
        Checkpoint(tmp_path).restore(plain())
    with pytest.raises(ValueError, match=r"but not its state\.safetensors"):
        plain().fit(*BATCH, callbacks=[Checkpoint(tmp_path)], verbose=0)
    assert content_of(tmp_path) == before


def test_a_run_that_was_not_restored_is_not_written_over(tmp_path):
    trained(tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already: continue it \(restore the checkpoint before fit\)"):
        plain().fit(*BATCH, callbacks=[Checkpoint(tmp_path)], verbose=0)
    assert content_of(tmp_path) == before


def test_of_two_programs_in_one_folder_the_second_one_stops(tmp_path):
    trained(tmp_path)
    one, other = Checkpoint(tmp_path), Checkpoint(tmp_path)
    for checkpoint in (one, other):
        checkpoint.set_model(plain())
        assert checkpoint.restore(checkpoint.model) == 1
    other.on_epoch_end(1, {"loss": 0.5, "val_AP": 0.6})
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=r"another program has written .*state\.safetensors since"):
        one.on_epoch_end(1, {"loss": 0.7, "val_AP": 0.9})
    assert content_of(tmp_path) == before


def test_a_kill_in_the_first_epoch_leaves_no_run(tmp_path, monkeypatch):
    """The models are there, and the state is not yet."""

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("tfdetr_keras.training.checkpoint.write_arrays", kill)
        with pytest.raises(Killed):
            trained(tmp_path)
    assert (tmp_path / "best.keras").exists()
    assert Checkpoint(tmp_path).restore(plain()) == 0
    trained(tmp_path)
    assert set(content_of(tmp_path)) == {"best.keras", "last.keras", "state.safetensors"}


def test_a_best_model_that_was_removed_is_chosen_again(tmp_path, caplog):
    trained(tmp_path)
    (tmp_path / "best.keras").unlink()
    model, checkpoint = plain(), Checkpoint(tmp_path)
    checkpoint.set_model(model)
    assert checkpoint.restore(model) == 1
    assert "best.keras is missing" in caplog.text
    checkpoint.on_epoch_end(1, {"val_AP": 0.1})
    assert checkpoint.best == 1
    assert (tmp_path / "best.keras").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"monitor": "loss", "mode": "min"}, {}, "by the min of loss, not by the max of val_AP"),
        ({}, {"monitor": "loss", "mode": "min"}, "by the max of val_AP, not by the min of loss"),
        ({}, {"mode": "min"}, "by the max of val_AP, not by the min of val_AP"),
    ],
)
def test_the_best_model_is_chosen_by_one_figure(tmp_path, before, after, message):
    checkpoint = Checkpoint(tmp_path, **before)
    checkpoint.set_model(plain())
    checkpoint.on_epoch_end(0, {"loss": 1.0, "val_AP": 0.5})
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path, **after).restore(plain())


def break_variable(model, place):
    variable = {
        "weight": lambda: model.layers[-1].bias,
        "frozen weight": lambda: model.non_trainable_variables[0],
        "moment": lambda: next(v for v in model.optimizer.variables if "momentum" in v.path),
        "average": lambda: next(v for v in model.optimizer.variables if v.path.endswith("_average")),
    }[place]()
    values = np.array(variable)
    values.flat[-1] = np.inf if place == "moment" else np.nan
    variable.assign(values)
    return variable.path


@pytest.mark.parametrize("place", ["weight", "frozen weight", "moment", "average"])
def test_what_is_not_finite_is_never_written(tmp_path, place):
    options = {"use_ema": True, "ema_momentum": 0.9}
    _, checkpoint = trained(tmp_path, **options)
    before = content_of(tmp_path)
    path = break_variable(checkpoint.model, place)
    with pytest.raises(
        ValueError, match=r"at the end of epoch 2, 1 of .* arrays .*the last checkpoint is unchanged"
    ) as told:
        checkpoint.on_epoch_end(1, {"loss": 1.0, "val_AP": 0.5})  # a tie, which would make it the best
    assert path in str(told.value)
    assert content_of(tmp_path) == before
    assert len(checkpoint.history) == 1


def test_a_damaged_state_is_refused_and_nothing_of_it_is_taken(tmp_path):
    _, checkpoint = trained(tmp_path)
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    place = content.index(np.array(checkpoint.model.layers[-1].kernel).tobytes())
    content[place : place + 8] = bytes(8)
    path.write_bytes(content)
    model = plain()
    before = weights(model)
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged.*start from .*last\.keras in a new folder"):
        Checkpoint(tmp_path).restore(model)
    assert_equal(weights(model), before)


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.SGD, keras.optimizers.AdamW])
def test_how_often_a_program_compiled_does_not_matter(tmp_path, optimizer):
    """A notebook's cell that is run twice: Keras numbers optimizers and layers over the whole program."""

    def model():
        made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
        made.compile(optimizer=optimizer(), loss="mse")
        return made

    first = model()
    first.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, callbacks=[Checkpoint(tmp_path, monitor="loss", mode="min")])
    again = model()
    assert again.optimizer.name != first.optimizer.name
    assert Checkpoint(tmp_path, monitor="loss", mode="min").restore(again) == 1
    assert_equal(weights(again), weights(first))
    assert_equal(*([np.array(v) for v in m.optimizer.variables] for m in (again, first)))
    other = model()
    other.compile(optimizer=keras.optimizers.RMSprop(), loss="mse")
    with pytest.raises(ValueError, match="is of another model or optimizer"):
        Checkpoint(tmp_path, monitor="loss", mode="min").restore(other)


def test_a_state_of_an_earlier_version_is_gone_on_from(tmp_path):
    """Its names carry numbers of Keras', it has no sum, and does not say by what the best model was chosen."""
    model, _ = trained(tmp_path)
    arrays = {
        f"{owner}/{index:05d}/{variable.path}": np.array(variable)
        for owner, variables in (("model", model.variables), ("optimizer", model.optimizer.variables))
        for index, variable in enumerate(variables)
    }
    notes = json.dumps({"history": [{"loss": 1.0, "val_AP": 0.5}], "best": 0})
    save_file(arrays, tmp_path / "state.safetensors", metadata={"notes": notes})
    again = plain()
    assert Checkpoint(tmp_path).restore(again) == 1
    assert_equal(weights(again), weights(model))
    with pytest.raises(ValueError, match="chose its best model by another figure"):
        Checkpoint(tmp_path, monitor="val_mask_AP").restore(plain())
