"""Messages of a run while it works: before and after the long first step, and, in a log, from time to time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import keras

logger = logging.getLogger(__name__)

EVERY = 60  # seconds between two words on how far an epoch is, or a measurement


class Progress(keras.callbacks.Callback):
    """A callback that logs what Keras' own bar does not show, and what it shows only on a terminal.

    Args:
        steps: batches an epoch.
        images: of the validation set.
        bar: whether Keras draws its bar, which then shows the progress of an epoch.
    """

    def __init__(self, steps: int, images: int, bar: bool) -> None:
        super().__init__()
        self.steps, self.images, self.bar = steps, images, bar
        self._epoch = 0
        self._begun = self._next = 0.0
        self._stepped = self._measured = False

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Announce the first step."""
        self._begun = time.monotonic()
        logger.info("tracing and compiling the first step: this takes about a minute")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the number of the epoch."""
        self._epoch, self._next = epoch, time.monotonic() + EVERY

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log that the first step is done, and, if there is no bar, from time to time the number of the step."""
        now = time.monotonic()
        if not self._stepped:
            self._stepped = True
            logger.info("the first step is done, after %.0f s", now - self._begun)
        elif not self.bar and now >= self._next:
            self._next = now + EVERY
            loss = (logs or {}).get("loss")
            shown = "" if loss is None else f", loss {float(loss):.3f}"
            logger.info("epoch %d, step %d of %d%s", self._epoch + 1, batch + 1, self.steps, shown)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Announce the first pass over the validation images."""
        self._next = time.monotonic() + EVERY
        if self._measured:
            return
        self._measured = True
        if self.bar:
            print(flush=True)  # the bar's line is not at its end
        logger.info("measuring the loss and AP on %d validation images", self.images)

    def measured(self, count: int) -> None:
        """Log from time to time how many images AP was measured on."""
        now = time.monotonic()
        if now >= self._next and count < self.images:
            self._next = now + EVERY
            logger.info("measured AP on %d of %d images", count, self.images)
