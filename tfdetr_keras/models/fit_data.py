"""Validate the data passed to `fit`, `evaluate` and `*_on_batch` before it is traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from tfdetr_keras.losses.targets import dense_targets, refuse_padding, validate_batch


@contextlib.contextmanager
def checked(
    x: Any,
    y: Any = None,
    *,
    num_classes: int,
    hand_targets: bool = False,
    without_padding: str | None = None,
    of_datasets: Any = None,
) -> Iterator[Any]:
    """Check whatever Keras takes as training data: at once if it is there, else batch by batch.

    Args:
        x: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of (inputs, targets); or inputs; or a tuple
            (inputs, targets) as in `validation_data`.
        y: the targets, where `x` is inputs.
        num_classes: number of real classes.
        of_datasets: the module `tfdetr_keras.data.checks`, where `x` is a dataset; its own floor is above this one.
        hand_targets: whether the model is given the targets' labels and boxes among its inputs, too, as `"targets"`.
        without_padding: what people call the model, if it knows no padding, which is then refused.

    Yields:
        What to hand to Keras in place of `x`.

    Raises:
        ValueError: what `validate_batch` finds, also when it comes out of TensorFlow as another error.
        Exception: what a generator or a `PyDataset` itself raises, as it was: TensorFlow, which runs them in a thread
            of its own, makes other errors of them.
    """
    if is_tf_dataset(x):
        with of_datasets.readable_errors():
            dataset = of_datasets.checked_dataset(x, num_classes, without_padding)
            yield dataset.map(_with_targets) if hand_targets else dataset
        return
    check = functools.partial(
        _validated, num_classes=num_classes, hand_targets=hand_targets, without_padding=without_padding
    )
    if isinstance(x, keras.utils.PyDataset):
        checked_dataset = _CheckedPyDataset(x, check)
        with _raised_as_they_were(checked_dataset.errors):
            yield checked_dataset
    elif hasattr(x, "__next__"):
        errors: list[Exception] = []
        with _raised_as_they_were(errors):
            yield _checked_batches(x, check, errors)
    else:
        batch = check((x, y) if y is not None else x)
        yield batch[0] if y is not None else batch


@contextlib.contextmanager
def _raised_as_they_were(errors: list[Exception]) -> Iterator[None]:
    """Raise the first of some errors instead of what became of it."""
    try:
        yield
    except Exception as error:
        if not errors or error is errors[0]:
            raise
        raise errors[0] from None


def _checked_batches(batches: Iterator[Any], check: Callable[[Any], Any], errors: list[Exception]) -> Iterator[Any]:
    """Give the batches of a generator, checked; an error is noted in `errors` and raised."""
    try:
        for batch in batches:
            yield check(batch)
    except Exception as error:
        errors.append(error)
        raise


def is_tf_dataset(x: Any) -> bool:
    """Return whether a value is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(x, "element_spec") and hasattr(x, "map")


def _validated(batch: Any, num_classes: int, hand_targets: bool, without_padding: str | None) -> Any:
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if without_padding and isinstance(inputs, Mapping) and inputs.get("pixel_mask") is not None:
        refuse_padding(inputs["pixel_mask"], without_padding)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        validate_batch(batch[1], num_classes)
        if hand_targets:
            return _with_targets(*batch)
    return batch


def _with_targets(inputs: Any, targets: Any, *rest: Any) -> tuple[Any, ...]:
    """Return the batch with the targets' labels and boxes among its inputs, for a model that trains with them."""
    given = dict(inputs) if isinstance(inputs, Mapping) else {"pixel_values": inputs}
    dense = dense_targets(targets)
    return {**given, "targets": {name: dense[name] for name in ("labels", "boxes")}}, targets, *rest


class _CheckedPyDataset(keras.utils.PyDataset):
    def __init__(self, dataset: keras.utils.PyDataset, check: Callable[[Any], Any]) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.check = dataset, check
        self.errors: list[Exception] = []

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        try:
            return self.check(self.dataset[index])
        except Exception as error:
            self.errors.append(error)  # where workers are processes, it is known in one of them only
            raise

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()
