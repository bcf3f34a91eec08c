"""What pictures call the images of a data set: by their files' names, where they have files."""

from __future__ import annotations

import os
from collections.abc import Iterable

import tensorflow as tf

from tfdetr_keras.data.record import reader_of


def image_titles(dataset: tf.data.Dataset, image_ids: Iterable[int]) -> dict[int, str]:
    """Gives a title for each of some images: the file's name, or "image 7" where the data set does not know a file.

    Args:
        dataset: of records, as a reader returns them.
        image_ids: of the images.

    Returns:
        Image id -> title.
    """
    titles = {int(image_id): f"image {image_id}" for image_id in image_ids}
    reader, missing = reader_of(dataset), set(titles)
    keys = {"path", "image_id"}
    if (
        reader is None
        or not isinstance(reader.entries.element_spec, dict)
        or not keys <= set(reader.entries.element_spec)
    ):
        return titles
    for entry in reader.entries.map(lambda entry: {key: entry[key] for key in keys}).as_numpy_iterator():
        if not missing:
            break
        if (image_id := int(entry["image_id"])) in missing:
            missing.remove(image_id)
            titles[image_id] = os.path.basename(os.fsdecode(entry["path"]))
    return titles
