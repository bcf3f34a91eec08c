"""A stop of training when its loss or its weights are not finite, with the images where it happened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import file_of
from tfdetr_keras.training.finite import refuse_non_finite

SHOWN = 16  # images in a message


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """A callback that ends `fit` with a `ValueError` at the first step whose loss is NaN or infinite.

    After the last step of an epoch no further loss would show it; so the weights and the optimizer's arrays
    are checked then, before anything is measured or saved.

    The message names the epoch, the step and its images, by their files if known, else by their ids, if
    `fit` got the batches through `watch`. The epoch's end is not reached, so the last good checkpoint is not
    overwritten.

    Raises:
        ValueError: while training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._next_step = 0
        self._looked_at: int | None = None  # the epoch whose end the weights were looked at
        self._image_ids: dict[int, list[int]] = {}
        self._batches: tf.data.Dataset | None = None

    def watch(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Return the batches of `prepare` unchanged, and note the image ids of each as it passes."""

        self._batches = batches

        def note(step: np.int64, image_ids: np.ndarray) -> np.int64:
            self._image_ids[int(step)] = image_ids.tolist()
            return step

        def pass_on(step: tf.Tensor, batch: Any) -> Any:
            with tf.control_dependencies([numpy_call(note, [step, batch[1]["image_id"]], tf.int64)]):
                return tf.nest.map_structure(tf.identity, batch)

        return batches.enumerate().map(pass_on)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Restart the count of steps."""
        self._epoch, self._next_step, self._looked_at = epoch, 0, None

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the loss. Keras logs its mean over the epoch, which is finite only while all of its parts are."""
        first, self._next_step = self._next_step, batch + 1  # several, with steps_per_execution
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss):
            return
        image_ids = [image_id for step in range(first, batch + 1) for image_id in self._image_ids.get(step, [])]
        raise ValueError(
            f"the loss is {loss} in epoch {self._epoch + 1}, step {batch + 1}"
            + (f" ({self._described(image_ids)})" if image_ids else "")
            + ": look at these images and boxes, or lower the learning rate; the last checkpoint is unchanged"
        )

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Check the weights before they are measured, inside `fit`."""
        if self._next_step:
            self._look_at_weights()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the weights."""
        self._look_at_weights()

    def _look_at_weights(self) -> None:
        if self._looked_at == self._epoch or getattr(self, "model", None) is None:
            return
        refuse_non_finite(self.model, self._epoch)
        self._looked_at = self._epoch

    def _described(self, image_ids: list[int]) -> str:
        shown, more = image_ids[:SHOWN], " …" if len(image_ids) > SHOWN else ""
        files = [self._batches and file_of(self._batches, image_id) for image_id in shown]
        if not all(files):
            return f"image ids {', '.join(map(str, shown))}{more}"
        return f"images {', '.join(f'{file} ({image_id})' for file, image_id in zip(files, shown, strict=True))}{more}"
