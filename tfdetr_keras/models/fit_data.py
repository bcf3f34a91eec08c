"""What `fit` and its sisters are given, with the targets checked on the way to the step that is traced with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from tfdetr_keras.targets import validate_batch


@contextlib.contextmanager
def checked(x: Any, y: Any = None, *, num_classes: int) -> Iterator[Any]:
    """Checks whatever Keras takes as training data: at once where it is there, else batch by batch as it comes.

    Args:
        x: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of (inputs, targets); or inputs; or a tuple
            (inputs, targets) as in `validation_data`.
        y: the targets, where `x` is inputs.
        num_classes: number of real classes.

    Yields:
        What to hand to Keras in place of `x`.

    Raises:
        ValueError: what `validate_batch` finds, also when it comes out of TensorFlow as another error.
    """
    if is_tf_dataset(x):
        from tfdetr_keras.data.checks import checked_dataset, readable_errors  # TensorFlow is there already

        with readable_errors():
            yield checked_dataset(x, num_classes)
        return
    if isinstance(x, keras.utils.PyDataset):
        yield _CheckedPyDataset(x, num_classes)
    elif hasattr(x, "__next__"):
        yield (_validated(batch, num_classes) for batch in x)
    else:
        _validated((x, y) if y is not None else x, num_classes)
        yield x


def is_tf_dataset(x: Any) -> bool:
    """Tells a `tf.data.Dataset` without importing TensorFlow."""
    return hasattr(x, "element_spec") and hasattr(x, "map")


def _validated(batch: Any, num_classes: int) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        validate_batch(batch[1], num_classes)
    return batch


class _CheckedPyDataset(keras.utils.PyDataset):
    def __init__(self, dataset: keras.utils.PyDataset, num_classes: int) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.num_classes = dataset, num_classes

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        return _validated(self.dataset[index], self.num_classes)

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()
