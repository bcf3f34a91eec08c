"""COCO's AP during training, as a Keras callback: the figure that says whether a detector learns."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.evaluation import METRIC_NAMES, Evaluator
from tfdetr_keras.training.averages import averaged_weights


class AveragePrecision(keras.callbacks.Callback):
    """Measures COCO's AP on held-out records after each epoch of `fit`, and at the end of `evaluate`.

    The logs get `val_AP`, `val_AP50`, `val_AP75`, `val_APs`, `val_APm`, `val_APl` and `val_AR1` … `val_ARl`, so that
    `ModelCheckpoint(monitor="val_AP", mode="max")`, `EarlyStopping` and `TensorBoard`, behind it in the list of
    callbacks, can use them. Boxes are compared in pixels of the original images, by pycocotools.

    Args:
        records: held-out records, see `tfdetr_keras.data.record`; not batches.
        class_names: name of each label.
        size: (shortest_edge, longest_edge) that images are resized to, pixels; as in training.
        batch_size: images a batch; with 1 there is no padding to change the answers.
        pad_to: (height, width) of a fixed canvas, pixels.
        every: epochs from one measurement to the next; the last epoch is always measured.
        averaged: whether the averages of the weights are measured in place of the weights, after each epoch (an
            optimizer with `use_ema`); not together with `keras.callbacks.SwapEMAWeights`, which does the same.

    Attributes:
        metrics: of the last measurement, see `tfdetr_keras.evaluation.coco_metrics`; also the AP of each class.
        evaluator: which has the last detections, to be written or drawn.

    Raises:
        ValueError: while training: the model's classes are not those of `class_names`, or bad records.
    """

    def __init__(
        self,
        records: tf.data.Dataset,
        class_names: Sequence[str],
        size: tuple[int, int] = (800, 1333),
        batch_size: int = 1,
        pad_to: tuple[int, int] | None = None,
        every: int = 1,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.evaluator = Evaluator(records, class_names, size, batch_size, pad_to)
        self.every, self.averaged = every, averaged
        self.metrics: dict[str, Any] = {}
        self._in_fit = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """`fit` runs `evaluate` for its validation data, which is not the time to measure."""
        self._in_fit = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """From here on `evaluate` is called by somebody else."""
        self._in_fit = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, and adds the figures to the logs."""
        if (epoch + 1) % self.every == 0 or epoch + 1 == (self.params or {}).get("epochs"):
            with averaged_weights(self.model) if self.averaged else contextlib.nullcontext():
                self._measure()
            if logs is not None:
                logs.update({f"val_{name}": self.metrics[name] for name in METRIC_NAMES})

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Measures, and prints AP and AP50: Keras' `evaluate` returns nothing of a callback."""
        if not self._in_fit:
            self._measure()
            print(f"AP {self.metrics['AP']:.3f}, AP50 {self.metrics['AP50']:.3f}")

    def _measure(self) -> None:
        self.metrics = self.evaluator(self.model)
