"""Checkpoints in plain `fit`: what is kept, what is chosen, and what cannot be gone on from."""

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tfdetr_keras.training import Checkpoint, averaged_weights
from tfdetr_keras.training.checkpoint import save_state


def weights(model):
    return [np.array(variable) for variable in model.trainable_variables]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


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
        ("min", [4.0, 2.0, 3.0, 2.5], 1),
        ("max", [None, 0.3, None, 0.2], 1),
        ("max", [None, float("nan"), 0.1, None], 2),
        ("max", [None, None, None, None], None),
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
    with pytest.raises(ValueError, match=r"state\.safetensors is not a whole training state"):
        Checkpoint(tmp_path).restore(compiled())
    with pytest.raises(ValueError, match="the model has no optimizer: call compile first"):
        Checkpoint(tmp_path).restore(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match='mode must be "max" or "min"'):
        Checkpoint(tmp_path, mode="best")
