"""From records to the batches that `Model.fit` takes: resize, normalise, pad, and lay out the targets.

Images of a batch share one canvas, padded at the bottom and the right with zeros after the normalisation; a mask tells
image from padding. Targets share one number of rows; a padding row has label -1 and box 0.
"""

import tensorflow as tf

from tfdetr_keras.data import transforms

Batch = tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]


def encode(record: transforms.Record, size: tuple[int, int]) -> Batch:
    """Turns one record into the inputs and targets of one image, not yet padded.

    Args:
        record: see `tfdetr_keras.data.record`.
        size: (shortest_edge, longest_edge) that the image is resized to, pixels.

    Returns:
        `{"pixel_values": (height, width, 3) float32, "pixel_mask": (height, width) int32}` and
        `{"labels": (objects,) int32, "boxes": (objects, 4) float32 cxcywh relative to the image,
        "image_id": () int64, "orig_size": (2,) int32}` without the crowds.
    """
    height, width = tf.unstack(tf.shape(record["image"])[:2])
    new_size = tf.stack(transforms.resized_size(height, width, *size))
    record = transforms.resize(record, new_size)
    single = ~record["iscrowd"]
    inputs = {
        "pixel_values": transforms.normalize(record["image"]),
        "pixel_mask": tf.ones(new_size, tf.int32),
    }
    targets = {
        "labels": tf.boolean_mask(record["labels"], single),
        "boxes": tf.boolean_mask(transforms.relative_boxes(record["boxes"], new_size), single),
        "image_id": record["image_id"],
        "orig_size": record["orig_size"],
    }
    return inputs, targets


def _check_fits(
    inputs: dict[str, tf.Tensor],
    targets: dict[str, tf.Tensor],
    pad_to: tuple[int, int] | None,
    max_boxes: int | None,
) -> Batch:
    """Stops at an image that is larger than the canvas or has more objects than there are rows."""
    text = tf.strings.as_string
    size, objects, checks = tf.shape(inputs["pixel_mask"]), tf.size(targets["labels"]), []
    if pad_to is not None:
        message = [" is ", text(size[0]), " x ", text(size[1]), " after the resize, larger than pad_to = "]
        message.append(f"{pad_to[0]} x {pad_to[1]}: make pad_to larger or size smaller")
        checks.append((tf.reduce_all(size <= tf.constant(pad_to)), message))
    if max_boxes is not None:
        checks.append((objects <= max_boxes, [" has ", text(objects), f" objects, more than max_boxes = {max_boxes}"]))
    name = ["image ", text(targets["image_id"])]
    with tf.control_dependencies(
        [tf.debugging.Assert(fits, [tf.strings.join(name + message)]) for fits, message in checks]
    ):
        return tf.nest.map_structure(tf.identity, (inputs, targets))


def _at_least_one_row(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor]) -> Batch:
    """Adds a padding row to a batch without any object: M = 0 would be a corner case for every later floor."""
    missing = tf.maximum(0, 1 - tf.shape(targets["labels"])[1])
    labels = tf.pad(targets["labels"], [[0, 0], [0, missing]], constant_values=-1)
    boxes = tf.pad(targets["boxes"], [[0, 0], [0, missing], [0, 0]])
    return inputs, targets | {"labels": labels, "boxes": boxes}


def pad_batches(
    examples: tf.data.Dataset,
    batch_size: int,
    pad_to: tuple[int, int] | None = None,
    max_boxes: int | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Pads examples (see `encode`) to a common shape and batches them; see `prepare` for the arguments.

    Further target keys are padded to the batch's maximum, with -1 where the key ends in "labels" and 0 elsewhere.
    """
    if pad_to is not None or max_boxes is not None:
        examples = examples.map(lambda inputs, targets: _check_fits(inputs, targets, pad_to, max_boxes))
    input_spec, target_spec = examples.element_spec
    height, width = pad_to or (None, None)
    shapes = {key: spec.shape for key, spec in target_spec.items()}
    shapes |= {"labels": (max_boxes,), "boxes": (max_boxes, 4)}
    values = {key: tf.constant(-1, spec.dtype) if key.endswith("labels") else None for key, spec in target_spec.items()}
    batches = examples.padded_batch(
        batch_size,
        padded_shapes=({"pixel_values": (height, width, 3), "pixel_mask": (height, width)}, shapes),
        padding_values=(dict.fromkeys(input_spec), values),
        drop_remainder=drop_remainder,
    )
    return batches if max_boxes is not None else batches.map(_at_least_one_row)


def prepare(
    dataset: tf.data.Dataset,
    batch_size: int,
    training: bool = False,
    size: tuple[int, int] = (800, 1333),
    pad_to: tuple[int, int] | None = None,
    max_boxes: int | None = None,
    seed: int = 0,
    shuffle_buffer: int = 512,
) -> tf.data.Dataset:
    """Turns a dataset of records into batches for `Model.fit`, `evaluate` and `predict`.

    With `training`, records are shuffled anew in every epoch, each is mirrored with probability 1/2, and an incomplete
    last batch is left out. Crowds are no targets. The same seed gives the same batches.

    Args:
        dataset: of records, see `tfdetr_keras.data.record`.
        batch_size: images a batch.
        training: whether to shuffle and augment.
        size: (shortest_edge, longest_edge) that images are resized to, pixels.
        pad_to: (height, width) of a fixed canvas, pixels; the largest image of the batch by default.
            With `max_boxes` it makes all shapes static, so that a compiled model is traced once.
        max_boxes: rows of the targets; by default the most objects that an image of the batch has, at least 1.
        seed: of the shuffling and the mirroring.
        shuffle_buffer: records held in memory to shuffle from.

    Returns:
        A dataset of (inputs, targets):
        `{"pixel_values": (batch, height, width, 3) float32, "pixel_mask": (batch, height, width) int32, 1 = image}` and
        `{"labels": (batch, M) int32, -1 = padding, "boxes": (batch, M, 4) float32 cxcywh in [0, 1] of the image without
        padding, "image_id": (batch,) int64, "orig_size": (batch, 2) int32 height and width before the resize}`.

    Raises:
        ValueError: at the call, for sizes that cannot work, or fewer records than a training batch needs.
        tf.errors.InvalidArgumentError: while iterating, for an image larger than `pad_to` or with more objects than
            `max_boxes`; names its id (`readable_errors` turns it into a `ValueError`).
    """
    if batch_size < 1 or (max_boxes is not None and max_boxes < 1):
        raise ValueError(f"batch_size and max_boxes must be at least 1, not {batch_size} and {max_boxes}")
    if not 1 <= size[0] <= size[1]:
        raise ValueError(f"size must be (shortest_edge, longest_edge), 1 <= shortest_edge <= longest_edge, not {size}")
    if training:
        if 0 <= dataset.cardinality() < batch_size:
            raise ValueError(
                f"{int(dataset.cardinality())} records do not fill one training batch of {batch_size}: "
                "lower batch_size or repeat() the dataset"
            )
        dataset = dataset.shuffle(shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
        coins = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
        dataset = tf.data.Dataset.zip(dataset, coins).map(
            transforms.random_horizontal_flip, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
    examples = dataset.map(lambda record: encode(record, size), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pad_batches(examples, batch_size, pad_to, max_boxes, drop_remainder=training).prefetch(tf.data.AUTOTUNE)
