"""Memory for batches, reused: a batch takes 50 MB, and the system needs time for each new page of it."""

import math
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; TensorFlow copies arrays that begin elsewhere


class BufferPool:
    """A pool that hands out arrays and takes their memory back when nobody holds them any more, TensorFlow included.

    The memory is bytes, not an array: a view of a view would hold the innermost array instead of the one handed out.
    The pool keeps as many pieces of memory as were in use at once, each as large as the largest array it had to hold.
    """

    def __init__(self) -> None:
        self._returned: queue.SimpleQueue[bytearray] = queue.SimpleQueue()  # may be filled from any thread, any time
        self._idle: list[bytearray] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return an uninitialised array, like `numpy.empty`; safe to call from several threads."""
        memory = self._piece(math.prod(shape) * np.dtype(dtype).itemsize + ALIGNMENT)
        start = -np.frombuffer(memory, np.uint8).ctypes.data % ALIGNMENT
        array: np.ndarray = np.ndarray(shape, dtype, memory, offset=start)
        weakref.finalize(array, self._returned.put, memory).atexit = False
        return array

    def _piece(self, size: int) -> bytearray:
        """Return the smallest idle piece of at least `size` bytes, or a new one in place of the smallest."""
        with self._lock:
            while not self._returned.empty():
                self._idle.append(self._returned.get())
            self._idle.sort(key=len)
            for place, memory in enumerate(self._idle):
                if len(memory) >= size:
                    return self._idle.pop(place)
            del self._idle[:1]
        return bytearray(size)
