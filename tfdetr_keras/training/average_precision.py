"""COCO's AP during training, as a Keras callback: the metric that shows whether a detector learns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.evaluation.coco import MASK, METRIC_NAMES, Evaluator
from tfdetr_keras.preprocessing import Preprocessing, SizeRule
from tfdetr_keras.training.averages import averaged_weights


class AveragePrecision(keras.callbacks.Callback):
    """A callback that measures COCO's AP on held-out records after each epoch of `fit`, and at the end of `evaluate`.

    The logs get `val_AP`, `val_AP50`, `val_AP75`, `val_APs`, `val_APm`, `val_APl` and `val_AR1` … `val_ARl`, so that
    `ModelCheckpoint(monitor="val_AP", mode="max")`, `EarlyStopping` and `TensorBoard`, behind it in the list of
    callbacks, can use them. Boxes are compared in pixels of the original images; so are masks, if
    requested, as `val_mask_AP`, `val_mask_AP50`, …

    Args:
        records: held-out records, see `tfdetr_keras.data.record`; not batches.
        class_names: name of each label.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`; as in training.
        batch_size: images a batch; with 1 there is no padding that changes the answers.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        every: epochs from one measurement to the next; the last epoch is always measured.
        averaged: whether the averages of the weights are measured instead of the weights, after each epoch (an
            optimizer with `use_ema`); not together with `keras.callbacks.SwapEMAWeights`, which does the same.
        masks: whether AP of masks is measured, too, of records with masks and a model with a mask head.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.

    Attributes:
        metrics: of the last measurement, see `tfdetr_keras.evaluation.evaluate_detections`; also the AP of each class.
        evaluator: holds the last detections, to be written or drawn.
        progress: called with the number of images measured so far; None for no calls.

    Raises:
        ValueError: records without masks, if masks are to be measured; while training: the model's classes are not
            those of `class_names`, or bad records.
    """

    def __init__(
        self,
        records: tf.data.Dataset,
        class_names: Sequence[str],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        pad_to: tuple[int, int] | None = None,
        every: int = 1,
        averaged: bool = False,
        masks: bool = False,
        size_rule: SizeRule | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.evaluator = Evaluator(
            records, class_names, size, batch_size, pad_to, size_rule, masks, preprocessing=preprocessing
        )
        self.every, self.averaged = every, averaged
        self.metrics: dict[str, Any] = {}
        self.progress: Callable[[int], None] | None = None
        self._in_fit = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Note that `fit` has begun: it runs `evaluate` for its validation data, which is not the time to measure."""
        self._in_fit = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Note that `fit` has ended: from here on the user calls `evaluate`."""
        self._in_fit = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure AP, and add the metrics to the logs."""
        if (epoch + 1) % self.every == 0 or epoch + 1 == (self.params or {}).get("epochs"):
            with averaged_weights(self.model) if self.averaged else contextlib.nullcontext():
                self._measure()
            if logs is not None:
                names = [name for name in self.metrics if name.removeprefix(MASK) in METRIC_NAMES]
                logs.update({f"val_{name}": self.metrics[name] for name in names})

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Measure AP, and print AP and AP50, since Keras' `evaluate` returns nothing from a callback."""
        if not self._in_fit:
            self._measure()
            print(summary(self.metrics))

    def _measure(self) -> None:
        self.metrics = self.evaluator(self.model, progress=self.progress)


def summary(metrics: Mapping[str, Any]) -> str:
    """Return AP and AP50 of boxes, and of masks if they were measured, in one line."""
    shown = {"AP": "AP", "AP50": "AP50", f"{MASK}AP": "mask AP", f"{MASK}AP50": "mask AP50"}
    return ", ".join(f"{title} {metrics[name]:.3f}" for name, title in shown.items() if name in metrics)
