"""Variables that start with given values: nothing is drawn for them, and they are written once.

Keras defers the first value of a variable that is made inside of a `StatelessScope` to the scope's end. Until then
another value can take the place of the one that the layer would draw.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

Fresh = Callable[[], np.ndarray]
First = Callable[[Fresh], np.ndarray]


class FirstValues:
    """What variables are to start with, collected while they have no values yet."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def give(self, variable: Any, first: First) -> None:
        """Let a variable that was made in this scope start with a value.

        Args:
            variable: of Keras.
            first: called once, when the scope ends, with a function that draws what the variable would start with;
                returns the value.
        """
        draw, shape, dtype = variable._initializer, variable.shape, variable.dtype

        def initialize(*_: Any, **__: Any) -> Any:
            # An error here would leave the variables behind this one to the next scope of anybody.
            if not self.errors:
                try:
                    return ops.convert_to_tensor(first(fresh), dtype=dtype)
                except Exception as error:
                    self.errors.append(error)
            return draw(shape, dtype=dtype)

        def fresh() -> np.ndarray:
            return np.asarray(ops.convert_to_numpy(draw(shape, dtype=dtype)))

        variable._initializer = initialize


@contextlib.contextmanager
def first_values() -> Iterator[FirstValues]:
    """Defer the first values of the variables that are made while it is open to its end.

    Yields:
        What takes the values; variables that it is given none for draw theirs.

    Raises:
        Exception: at the end, what giving a value raised first.
    """
    values, collects = FirstValues(), gc.isenabled()
    # Making a model makes objects by the hundred thousand and drops none: collections would look at them in vain, for
    # half of the time.
    gc.disable()
    try:
        with keras.StatelessScope():
            yield values
    finally:
        if collects:
            gc.enable()
    if values.errors:
        raise values.errors[0]
