"""Checkpoints of a training run: everything needed to resume it, and the models to keep. No kill damages them."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.backend.processes import by_this_worker_alone, process_index
from tfdetr_keras.training.averages import averaged_weights
from tfdetr_keras.training.finite import refuse_non_finite
from tfdetr_keras.training.state_file import StateFile, write_arrays

logger = logging.getLogger(__name__)

# Numbers that Keras counts over the whole program: dense_1, adam_2/dense_1_kernel_momentum.
_PLACE = re.compile(r"/\d{5}/")
_COUNTED = re.compile(r"_\d+(?=[_/]|$)")
_OF_STATISTICS = re.compile(r"_moving_(mean|variance)_average$")
STATE, LAST, BEST = "state.safetensors", "last.keras", "best.keras"
# While it is there, the first epoch is being written: models without a state are then a run that never was.
FIRST_EPOCH = ".first-epoch"
_Stamp = tuple[int, int, int] | None


class Checkpoint(keras.callbacks.Callback):
    """A callback that keeps, at the end of each epoch, the state to resume from, the last model, and the best one.

    The folder then holds `state.safetensors` (weights, the optimizer's moments and averages, the seeds of dropout,
    the logs of all epochs), `last.keras` and `best.keras`. Each is replaced as a whole, the state last: whenever the
    process is killed, `restore` finds the end of an epoch, and what was lost is trained again, with the same result.

        checkpoint = Checkpoint("run")
        done = checkpoint.restore(model)  # compiled as before
        batches = td.data.prepare(records, …, first_epoch=done)
        model.fit(batches, initial_epoch=done, epochs=50, callbacks=[AveragePrecision(…), checkpoint])

    Put it after the callbacks whose metrics it should keep, and do not combine it with
    `keras.callbacks.SwapEMAWeights`, which leaves the averages where the state expects the weights: `averaged=True`
    does that callback's work.

    Weights, moments or averages that are not finite are never written.

    Args:
        folder: to write to; made if it does not exist.
        monitor: name in the logs by which the best model is chosen; epochs without it are not considered.
        mode: whether "max" or "min" of it is best.
        averaged: whether the two models get the averages of the weights (an optimizer with `use_ema`).
        when_best: called with the epoch of a new best model, before the state is written, so that it is called again
            if the process is killed in between.

    Attributes:
        history: the logs of each epoch so far, those before `restore` included.
        best: the epoch (from 0) of the best model, or None.

    Raises:
        ValueError: while training: the folder holds a run that was not restored, or another program has written into
            it since; arrays that are not finite, with their names.
        FullDiskError: while training: the disk has no room; the last checkpoint is unchanged.
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
        self._known: _Stamp = None  # the state that this object read or wrote last

    def restore(self, model: keras.Model) -> int:
        """Restore a compiled model to the end of the last complete epoch.

        Returns:
            The number of epochs done, for `fit`'s `initial_epoch`; 0, with nothing changed, if there is no run.

        Raises:
            ValueError: the state is damaged, missing beside the models of a run, or of another model or optimizer; or
                its best model was chosen by another metric.
        """
        path, variables = self.folder / STATE, _variables(model)
        if not path.exists():
            self._refuse_lost_state()
            return 0
        stamp = _stamp(path)
        state = _readable(path)
        lost = _averages_of_statistics(state, variables)
        _refuse_other_variables(state, {name: one for name, one in variables.items() if name not in lost})
        self._refuse_other_choice(state.notes)
        for name, array in state.arrays():
            variables[_without_counts(name)].assign(array)
        if lost:
            logger.info("%s is of an earlier version, without averages of statistics: they start at these", path)
            of_lost = {id(variables[name]) for name in lost}
            for variable, average in model.optimizer.averages():
                if id(average) in of_lost:
                    average.assign(variable)
        self.history, self.best, self._known = state.notes["history"], state.notes["best"], stamp
        (self.folder / FIRST_EPOCH).unlink(missing_ok=True)  # of a kill right behind the first state
        if self.best is not None and not (self.folder / BEST).exists():
            logger.warning("%s is missing: the best epoch from here on will replace it", self.folder / BEST)
            self.best = None
        return len(self.history)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Raise if training would overwrite a run, before an epoch is spent on it."""
        if process_index() == 0:
            self._refuse_another_run()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the files; with several workers only the first one does."""
        refuse_non_finite(self.model, epoch)
        self.history = [*self.history[:epoch], {name: float(value) for name, value in (logs or {}).items()}]
        improved = self._improves(self.history[-1].get(self.monitor))
        if improved:
            self.best = epoch
        if process_index() != 0:
            return
        self._refuse_another_run()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE
        if self._known is None:
            (self.folder / FIRST_EPOCH).touch()
        with averaged_weights(self.model) if self.averaged else contextlib.nullcontext():
            kept = self._without_optimizer()
        for name in (LAST, BEST) if improved else (LAST,):
            with whole_file(self.folder / name) as partial:
                kept.save(partial)
        if improved and self.when_best is not None:
            self.when_best(epoch)
        notes = {"history": self.history, "best": self.best, "monitor": self.monitor, "mode": self.mode}
        save_state(self.model, path, notes)
        self._known = _stamp(path)
        (self.folder / FIRST_EPOCH).unlink(missing_ok=True)

    def _refuse_lost_state(self) -> None:
        """Raise if there are models of a run whose state is missing."""
        models = [name for name in (BEST, LAST) if (self.folder / name).exists()]
        if models and not (self.folder / FIRST_EPOCH).exists():
            raise ValueError(
                f"{self.folder} holds {' and '.join(models)} of a run, but not its {STATE}, without which it cannot be "
                f"continued: bring the file back, or start from {self.folder / models[0]} in a new folder"
            )

    def _refuse_another_run(self) -> None:
        """Raise if writing would overwrite files that this object has neither read nor written."""
        path = self.folder / STATE
        stamp = _stamp(path)
        if stamp == self._known:
            if stamp is None:
                self._refuse_lost_state()
            return
        if stamp is None:
            return  # its own, removed since: it is written again
        if self._known is None:
            raise ValueError(
                f"{self.folder} holds a run already: continue it (restore the checkpoint before fit), or give "
                "another folder"
            )
        raise ValueError(
            f"another program has written {path} since this one did, and its file is kept: give each program a folder "
            "of its own"
        )

    def _refuse_other_choice(self, notes: Mapping[str, Any]) -> None:
        """Raise if the best model so far was chosen by another metric than the next ones would be."""
        history, best = notes["history"], notes["best"]
        before = notes.get("monitor", self.monitor), notes.get("mode", self.mode)
        unknown = best is not None and self.monitor not in history[best]
        if before != (self.monitor, self.mode) or unknown:
            chosen = f"the {before[1]} of {before[0]}" if before[0] != self.monitor or not unknown else "another figure"
            raise ValueError(
                f"{self.folder} chose its best model by {chosen}, not by the {self.mode} of {self.monitor}: continue "
                f"with the same validation records, or begin a new run from {self.folder / LAST}"
            )

    def _without_optimizer(self) -> keras.Model:
        """Return a copy of the model as it is now; Keras' own format would include a compiled model's optimizer."""
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
    """Write every variable of a compiled model and its optimizer, and some notes, into one safetensors file."""
    arrays = {name: np.asarray(ops.convert_to_numpy(variable)) for name, variable in _variables(model).items()}
    write_arrays(path, arrays, notes)


def _readable(path: Path) -> StateFile:
    """Open a state; if it cannot be used, name the other ways to continue."""
    try:
        state = StateFile(path)
        if not isinstance(state.notes, dict) or not {"history", "best"} <= set(state.notes):
            raise ValueError(f"{path} is not a complete training state (it does not say which epochs were done)")
        return state
    except ValueError as error:
        last = path.with_name(LAST)
        way = f"start from {last} in a new folder" if last.exists() else "start again in a new folder"
        raise ValueError(f"{error}: bring back a copy of it, or {way}") from error


def _refuse_other_variables(state: StateFile, variables: Mapping[str, Any]) -> None:
    shapes = {_without_counts(name): shape for name, shape in state.shapes.items()}
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    if wrong := sorted({name for name, _ in shapes.items() ^ expected.items()}):
        if _without_seeds(shapes) == _without_seeds(expected):
            raise ValueError(
                f"{state.path} was written by an earlier version of tfdetr_keras, whose attention drew dropout in "
                f"another way, so the run cannot go on as it would have: start a new one from "
                f"{state.path.with_name(LAST)}"
            )
        raise ValueError(
            f"{state.path} is of another model or optimizer: {len(wrong)} variables differ in name or shape, "
            f"e.g. {wrong[0]}; make and compile the model as for that run"
        )


def _averages_of_statistics(state: StateFile, variables: Mapping[str, Any]) -> set[str]:
    """Return the averages of running statistics that a state does not have; earlier versions kept none."""
    known = {_without_counts(name) for name in state.shapes}
    return {name for name in variables if name not in known and _OF_STATISTICS.search(name)}


def _without_seeds(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the variables in their order without their places, and without the seeds of dropout."""
    return [(_PLACE.sub("/", name), shapes[name]) for name in sorted(shapes) if "seed_generator" not in name]


def _variables(model: keras.Model) -> dict[str, Any]:
    """Return all variables by name, which is their place and their path.

    Numbers that Keras counts over the whole program are left out of the names.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError("the model has no optimizer: call compile first")
    model.optimizer.build(model.trainable_variables)
    return {
        _without_counts(f"{owner}/{index:05d}/{variable.path}"): variable
        for owner, variables in (("model", model.variables), ("optimizer", model.optimizer.variables))
        for index, variable in enumerate(variables)
    }


def _without_counts(name: str) -> str:
    """Return a variable's name without the parts that differ between two equal models; its place keeps it distinct."""
    return _COUNTED.sub("", name)


def _stamp(path: Path) -> _Stamp:
    """Return a value that distinguishes a file at a path from the next one there; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
