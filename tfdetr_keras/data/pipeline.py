"""From a dataset of records to what `Model.fit` takes, in one call."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfdetr_keras.data import transforms
from tfdetr_keras.data.augmentation import RECIPES, Augmentation, evaluation
from tfdetr_keras.data.batching import Batch, BoxReference, Canvas, encode, pad_batches
from tfdetr_keras.data.multiscale import MULTIPLE, STEP, BatchInterpolation, MultiScale, check_multiscale
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import READABLE, RECORD_SPEC, Reader, Record, reader_of
from tfdetr_keras.data.sizes import Resize, buckets
from tfdetr_keras.data.validation import Validation
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, is_pair

# Records to shuffle from where they cannot all be held: images take most of the memory, about 1 MB each.
SHUFFLE_BUFFER = 512
GRAPH_SEED = 1  # any but 0


def prepare(
    dataset: tf.data.Dataset,
    batch_size: int,
    training: bool = False,
    size: tuple[int, int] | None = None,
    pad_to: Canvas | Sequence[Canvas] | Literal["buckets"] | None = None,
    max_boxes: int | None = None,
    augmentation: Augmentation | Callable[[Record, tf.Tensor], Record] = "paper",
    color_jitter: bool = False,
    seed: int = 0,
    shuffle_buffer: int | None = None,
    repeat: bool = False,
    first_epoch: int = 0,
    shard: tuple[int, int] = (1, 0),
    deterministic: bool = True,
    size_rule: SizeRule | None = None,
    box_reference: BoxReference = "image",
    preprocessing: Preprocessing | None = None,
    plain_from: int | None = None,
    multiscale: Sequence[float] | None = None,
    multiscale_interpolation: BatchInterpolation = "nearest",
) -> tf.data.Dataset:
    """Turn a dataset of records into batches for `Model.fit`, `evaluate` and `predict`.

    With `training`, records are shuffled differently in every epoch and augmented, and an incomplete last batch is left
    out. Crowds are not targets. The same seed gives the same batches, whatever the parallelism and the seeds of Keras
    and TensorFlow; how a record is augmented depends only on the seed, the epoch and the record's place in the dataset,
    and so not on `shard`.

    Records that come straight from a reader are shuffled and sharded before their images are read.

    Args:
        dataset: of records, see `tfdetr_keras.data.record`.
        batch_size: images a batch, of each shard.
        training: whether to shuffle and augment.
        size: (shortest_edge, longest_edge) that images are resized to, pixels, instead of the preprocessing's size;
            in training with "paper", at most. With `pad_to`, the limit holds to the pixel; without, the references'
            rounding may exceed it.
        pad_to: the canvas that images are padded to, in pixels. None: the canvas of the preprocessing, unless a size is
            given without one; if it has none, the largest image of the batch. (height, width): a fixed canvas, e.g.
            a square of `size`'s longest edge; with `max_boxes` it makes all shapes static. A list of canvases: the
            smallest that the image fits on; a batch then has images of one canvas, so a compiled model sees few shapes.
            "buckets": seven canvases that suit `size`. In training, each canvas leaves out its last, incomplete batch;
            an epoch with no other batch is an error.
        max_boxes: rows of the targets; by default the most objects that an image of the batch has, at least 1.
        augmentation: "paper" (mirror, crop, several scales; see `tfdetr_keras.data.augmentation`), "strong" (colours,
            zoom-out, IoU crop, mirror: RT-DETR's and D-FINE's), "flip" (mirror), "none", or a function of a record and
            a seed `(2,)` int, whose result is resized to `size`.
        color_jitter: whether brightness, contrast, saturation and hue are changed at random in training.
        seed: of the shuffling and the augmentation.
        shuffle_buffer: records to shuffle from; by default all, if the reader holds only their names, else 512.
        repeat: whether epochs follow one another in one endless dataset, for `fit(steps_per_epoch=…)`. Otherwise each
            pass over the dataset is an epoch.
        first_epoch: the number of the first epoch. Epoch e is the same in every run, so training can continue where
            another run ended.
        shard: (number of shards, index of this one): every n-th record, for one of several workers.
        deterministic: whether batches come in the same order on every run; False is faster where images take very
            different times to load.
        size_rule: instead of the preprocessing's rule, see `td.Preprocessing`.
        box_reference: "image": boxes are relative to the image without its padding, as the published weights were
            trained; "padded": to the canvas, as Hugging Face's image processor makes them.
        preprocessing: of the model that the batches are for, `model.preprocessing`; by default that of published DETRs:
            a shorter side of 800 pixels, a longer one of 1333 at most.
        plain_from: epoch, counted from 0 as `first_epoch`, from which on training only mirrors records ("none": not
            even that) and resizes them: without `augmentation`, `color_jitter` and `multiscale`. None: never.
        multiscale: factors of the canvas, of which one is drawn for each batch in training; the batch is resized as a
            whole, its sides to the nearest multiple of 32, or of the preprocessing's `multiple_of`. A factor may be
            listed several times, to be drawn more often; 1 leaves a batch as it is. `td.data.MULTISCALE` are RT-DETR's.
            The draw depends on the seed, the epoch and the number of the batch in it alone, not on `shard`.
        multiscale_interpolation: "nearest" (RT-DETR, D-FINE) or "bilinear" (RF-DETR), of the normalised pixels; masks
            take the nearest.

    Returns:
        A dataset of (inputs, targets):
        `{"pixel_values": (batch, height, width, 3) float32, "pixel_mask": (batch, height, width) int32, 1 = image}` and
        `{"labels": (batch, M) int32, -1 = padding, "boxes": (batch, M, 4) float32 cxcywh in [0, 1] of the image without
        padding, "image_id": (batch,) int64, "orig_size": (batch, 2) int32 height and width before the resize}`, with
        `"masks": (batch, M, height, width) bool` where records have them.

    Raises:
        ValueError: at the call, for arguments that cannot work, or fewer records than a training batch needs; in
            training, for a set without a single usable object, e.g. with pixels where relative boxes are meant.
        tf.errors.InvalidArgumentError: while iterating, for an image larger than `pad_to` or with more objects than
            `max_boxes`, named by its id, or for an epoch of training without any batch. The latter shows only at the
            end of the epoch if records are skipped or share several canvases (`readable_errors` turns the error into a
            `ValueError`).
    """
    _check_dataset(dataset)
    _check_arguments(batch_size, pad_to, max_boxes, augmentation, shuffle_buffer, shard, box_reference)
    preprocessing = Preprocessing.of(preprocessing).changed(size, None, size_rule)
    check_multiscale(multiscale, multiscale_interpolation)
    if plain_from is not None and plain_from < 0:
        raise ValueError(f"plain_from must be None or the number of an epoch, 0 or more, not {plain_from}")
    canvases = preprocessing.pad_to if pad_to is None else pad_to
    if canvases == "buckets":
        canvases = buckets(preprocessing.size, preprocessing.rule)
    resize = Resize.of(preprocessing, canvases)
    reader = reader_of(dataset) or _as_read(dataset)
    scales = None
    if training and multiscale is not None:
        multiple = preprocessing.multiple_of if preprocessing.multiple_of > 1 else MULTIPLE
        factors = tuple(map(float, multiscale))
        scales = MultiScale(factors, multiscale_interpolation, multiple, seed, plain_from, counts_batches=not repeat)
    if training:
        reader.refuse_total_loss()
        count = len(range(shard[1], int(reader.entries.cardinality()), shard[0]))
        if reader.entries.cardinality() >= 0 and count < batch_size and not repeat:
            raise ValueError(
                f"{count} records do not fill one training batch of {batch_size}: lower batch_size or set repeat=True"
            )
        entries = _shuffled(reader, seed, shuffle_buffer, repeat, first_epoch)
        if scales is not None and repeat:
            entries = _with_batch_numbers(entries, batch_size * shard[0])
        entries = entries.shard(*shard)
        if not repeat and reader.entries.cardinality() >= 0:
            entries = entries.apply(tf.data.experimental.assert_cardinality(count))
    else:
        entries = reader.entries.shard(*shard)
        entries = entries.repeat() if repeat else entries

    def example(*at_and_record: Any) -> Batch:
        *at, record = at_and_record
        if not training:
            return encode(evaluation(record, resize))
        epoch, place = at[0][0], at[0][1]
        seeds = tf.unstack(tf.random.split(tf.random.fold_in(tf.random.fold_in([seed, 0], epoch), place), 2), num=2)

        def augmented() -> Batch:
            jittered = transforms.color_jitter(record, seeds[0]) if color_jitter else record
            if isinstance(augmentation, str):
                return encode(RECIPES[augmentation](jittered, seeds[1], resize))
            changed = augmentation(jittered, seeds[1])
            if plain_from is not None and ("masks" in changed) != ("masks" in record):
                raise ValueError(
                    "augmentation changes whether records have masks, which plain_from undoes in the middle of a "
                    "training: change that with dataset.map before td.data.prepare"
                )
            return encode(evaluation(changed, resize))

        def plain() -> Batch:
            return encode(RECIPES["none" if augmentation == "none" else "flip"](record, seeds[1], resize))

        inputs, targets = augmented() if plain_from is None else tf.cond(epoch < plain_from, augmented, plain)
        return inputs, targets | ({} if scales is None else {STEP: at[0][-2:]})

    records = reader.records(entries, deterministic)
    examples = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic)
    may_be_empty = not training or repeat
    return pad_batches(
        examples, batch_size, canvases, max_boxes, training, box_reference, may_be_empty, preprocessing, scales
    )


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, tuple):
        raise ValueError("dataset is a tuple: readers return the records and the class names: pass the records alone")
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(f"dataset must be a tf.data.Dataset of records, not {type(dataset).__name__}")
    spec = dataset.element_spec
    if missing := [key for key in RECORD_SPEC if not isinstance(spec, Mapping) or key not in spec]:
        found = sorted(spec) if isinstance(spec, Mapping) else spec
        raise ValueError(
            f"the dataset's elements are not records, {', '.join(missing)} is missing from {found}: make records "
            "with td.data.from_dataset"
        )


def _check_arguments(
    batch_size: int,
    pad_to: Any,
    max_boxes: int | None,
    augmentation: Any,
    shuffle_buffer: int | None,
    shard: tuple[int, int],
    box_reference: str,
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes must be at least 1, not {max_boxes}")
    if shuffle_buffer is not None and shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, not {shuffle_buffer}")
    canvases = [pad_to] if is_pair(pad_to) else pad_to
    listed = isinstance(canvases, (tuple, list)) and len(canvases) > 0 and all(map(is_pair, canvases))
    if pad_to is not None and pad_to != "buckets" and not listed:
        raise ValueError(f'pad_to must be None, (height, width), a list of these, or "buckets", not {pad_to!r}')
    if isinstance(canvases, (tuple, list)) and min(map(min, canvases)) < 1:
        raise ValueError(f"pad_to must be of at least 1 pixel each way, not {pad_to!r}")
    if isinstance(augmentation, str) and augmentation not in RECIPES:
        raise ValueError(f"augmentation must be one of {tuple(RECIPES)} or a function, not {augmentation!r}")
    if not 0 <= shard[1] < shard[0]:
        raise ValueError(f"shard must be (number, index), 0 <= index < number, not {shard}")
    if box_reference not in get_args(BoxReference):
        raise ValueError(f"box_reference must be one of {get_args(BoxReference)}, not {box_reference!r}")


def _as_read(dataset: tf.data.Dataset) -> Reader:
    """Wrap a dataset of records that did not come from a reader as one; its entries are the records."""
    return Reader(dataset, lambda record: record | {READABLE: tf.constant(True)}, Validation(), entries_are_small=False)


def _shuffled(reader: Reader, seed: int, shuffle_buffer: int | None, repeat: bool, first_epoch: int) -> tf.data.Dataset:
    """Return the entries in a different order each epoch, as pairs ((epoch, place), entry).

    The place is that in the dataset, unshuffled.
    """
    if shuffle_buffer is None:
        count = int(reader.entries.cardinality())
        shuffle_buffer = count if reader.entries_are_small and count > 0 else SHUFFLE_BUFFER

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        # Of this graph alone: `shuffle` would mix the seed of the whole program (`keras.utils.set_random_seed`)
        # into the order, and takes no tensor for its own where that seed is 0.
        tf.compat.v1.set_random_seed(GRAPH_SEED)
        numbered = reader.entries.enumerate().map(lambda place, entry: (tf.stack([number, place]), entry))
        order = tf.random.stateless_uniform((), tf.random.fold_in([seed, 1], number), None, None, tf.int64)
        return numbered.shuffle(shuffle_buffer, seed=order)

    if repeat:
        return tf.data.Dataset.counter(first_epoch).flat_map(epoch)
    passes = itertools.count(first_epoch)
    number_of_pass = tf.data.Dataset.range(1).map(
        lambda _: tf.ensure_shape(numpy_call(lambda: np.int64(next(passes)), [], tf.int64), ())
    )
    return number_of_pass.flat_map(epoch)


def _with_batch_numbers(entries: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """Tell each entry of `_shuffled` its batch: ((epoch, place, epoch of the batch, number of the batch), entry).

    Epochs without end are batched across their borders, and a shard sees only some of the entries. So every `count` of
    them, a batch of all shards together, take the epoch of the first of them, and the number from its order in it.
    """

    def told(state: tuple[tf.Tensor, ...], at_and_entry: Any) -> Any:
        seen, order, epoch, batch = state
        at, entry = at_and_entry
        order = tf.where(at[0] == epoch, order + 1, 0)
        batch = tf.where(seen % count == 0, tf.stack([at[0], order // count]), batch)
        return (seen + 1, order, at[0], batch), (tf.concat([at, batch], axis=0), entry)

    zero, before = tf.constant(0, tf.int64), tf.constant(-1, tf.int64)
    return entries.scan((zero, zero, before, tf.zeros(2, tf.int64)), told)
