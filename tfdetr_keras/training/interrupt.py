"""A Ctrl-C that ends training wherever it arrives.

Python raises `KeyboardInterrupt` in the code that happens to run. In a destructor or the callback of a weak reference,
of which matplotlib and TensorFlow run many, it is printed and dropped, and the program continues as if nobody had
asked.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

import keras


class StopAtInterrupt(keras.callbacks.Callback):
    """A callback that raises a dropped `KeyboardInterrupt` again before the next step.

    It listens while it is entered as a context manager. It does nothing outside of the main thread, which alone
    receives signals, or where Ctrl-C is ignored.

    Raises:
        KeyboardInterrupt: while training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: Any = None
        self._raised = False

    def __enter__(self) -> StopAtInterrupt:
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and threading.current_thread() is threading.main_thread():
            self._before = before
            signal.signal(signal.SIGINT, self._raise)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _raise(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before(number, frame)
        except KeyboardInterrupt:  # a handler of somebody's own may not raise it
            self._raised = True
            raise

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Raise before the epoch."""
        self._stop()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Raise before the step."""
        self._stop()

    def _stop(self) -> None:
        if self._raised:
            raise KeyboardInterrupt
