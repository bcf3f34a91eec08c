"""Checkpoints of a training run: all that it goes on from, and the models to keep; a kill hurts none of them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tfdetr_keras.atomic import whole_file
from tfdetr_keras.training.averages import averaged_weights
from tfdetr_keras.workers import by_this_worker_alone, worker_index

_COUNTED = re.compile(r"(?<=seed_generator)_\d+")
STATE, LAST, BEST = "state.safetensors", "last.keras", "best.keras"


class Checkpoint(keras.callbacks.Callback):
    """Keeps, at the end of each epoch, the state to go on from, the last model, and the best one.

    In the folder stand then `state.safetensors` (weights, the optimizer's moments and averages, the seeds of dropout,
    the logs of all epochs), `last.keras` and `best.keras`. Each is replaced as a whole, the state last: whenever the
    process is killed, `restore` finds the end of an epoch, and what was lost is trained again, to the same result.

        checkpoint = Checkpoint("run")
        done = checkpoint.restore(model)  # compiled as before
        batches = td.data.prepare(records, …, first_epoch=done)
        model.fit(batches, initial_epoch=done, epochs=50, callbacks=[AveragePrecision(…), checkpoint])

    Put it behind the callbacks whose figures it should keep, and not beside `keras.callbacks.SwapEMAWeights`, which
    leaves the averages where the state expects the weights: `averaged=True` does that callback's work.

    Args:
        folder: where to write; made if it does not exist.
        monitor: name in the logs by which the best model is chosen; epochs without it choose nothing.
        mode: whether "max" or "min" of it is best.
        averaged: whether the two models get the averages of the weights (an optimizer with `use_ema`).
        when_best: called with the epoch of a new best model, before the state is written: what it does is then done
            again if a kill comes between.

    Attributes:
        history: the logs of each epoch so far, those before `restore` included.
        best: the epoch (from 0) of the best model, or None.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val_AP",
        mode: Literal["max", "min"] = "max",
        averaged: bool = False,
        when_best: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", not {mode!r}')
        self.folder = Path(folder)
        self.monitor, self.mode, self.averaged, self.when_best = monitor, mode, averaged, when_best
        self.history: list[dict[str, float]] = []
        self.best: int | None = None
        self._kept: tuple[keras.Model, keras.Model] | None = None

    def restore(self, model: keras.Model) -> int:
        """Puts a compiled model where the last whole epoch left it.

        Returns:
            The number of epochs done, to be `fit`'s `initial_epoch`; 0, and nothing changed, where there is no state.

        Raises:
            ValueError: the state is damaged, or of another model or optimizer.
        """
        path = self.folder / STATE
        if not path.exists():
            return 0
        notes = load_state(model, path)
        self.history, self.best = notes["history"], notes["best"]
        return len(self.history)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the files; of several workers the first one does."""
        self.history = [*self.history[:epoch], {name: float(value) for name, value in (logs or {}).items()}]
        improved = self._improves(self.history[-1].get(self.monitor))
        if improved:
            self.best = epoch
        if worker_index() != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with averaged_weights(self.model) if self.averaged else contextlib.nullcontext():
            kept = self._without_optimizer()
        for name in (LAST, BEST) if improved else (LAST,):
            with whole_file(self.folder / name) as partial:
                kept.save(partial)
        if improved and self.when_best is not None:
            self.when_best(epoch)
        save_state(self.model, self.folder / STATE, {"history": self.history, "best": self.best})

    def _without_optimizer(self) -> keras.Model:
        """A copy of the model as it is now: Keras' own format always takes a compiled model's optimizer along."""
        with by_this_worker_alone():
            if self._kept is None or self._kept[0] is not self.model:
                self._kept = self.model, type(self.model).from_config(self.model.get_config())
            for variable, current in zip(self._kept[1].weights, self.model.weights, strict=True):
                variable.assign(ops.convert_to_numpy(current))
        return self._kept[1]

    def _improves(self, value: float | None) -> bool:
        if value is None or math.isnan(value):
            return False
        if self.best is None or self.best >= len(self.history) - 1:
            return True
        before = self.history[self.best][self.monitor]
        # Of equals the later: before a detector finds anything, all epochs have an AP of 0.
        return value >= before if self.mode == "max" else value <= before


def save_state(model: keras.Model, path: str | Path, notes: Mapping[str, Any]) -> None:
    """Writes every variable of a compiled model and its optimizer, and some notes, into one safetensors file."""
    arrays = {name: np.asarray(ops.convert_to_numpy(variable)) for name, variable in _variables(model).items()}
    with whole_file(path) as partial:
        save_file(arrays, partial, metadata={"notes": json.dumps(notes)})


def load_state(model: keras.Model, path: str | Path) -> dict[str, Any]:
    """Reads what `save_state` wrote back into the variables, and returns the notes.

    Raises:
        ValueError: the file is damaged, or its variables are not those of the model and its optimizer.
    """
    variables = _variables(model)
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            expected = {name: tuple(variable.shape) for name, variable in variables.items()}
            if wrong := sorted(name for name, _ in shapes.items() ^ expected.items()):
                raise ValueError(
                    f"{path} is of another model or optimizer: {len(set(wrong))} variables differ in name or shape, "
                    f"{wrong[0]} for one; make and compile the model as it was"
                )
            for name, variable in variables.items():
                variable.assign(file.get_tensor(name))
            return json.loads(file.metadata()["notes"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole training state ({error})") from error


def _variables(model: keras.Model) -> dict[str, Any]:
    """All variables by name: their place and their path, but for numbers that Keras counts over the whole program."""
    if getattr(model, "optimizer", None) is None:
        raise ValueError("the model has no optimizer: call compile first")
    model.optimizer.build(model.trainable_variables)
    return {
        f"{owner}/{index:05d}/{_COUNTED.sub('', variable.path)}": variable
        for owner, variables in (("model", model.variables), ("optimizer", model.optimizer.variables))
        for index, variable in enumerate(variables)
    }
