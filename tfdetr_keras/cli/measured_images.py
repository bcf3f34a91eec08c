"""The images that models are measured on: a data set that options name, or a run's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.cli.data_options import source_arguments
from tfdetr_keras.cli.model_options import is_run
from tfdetr_keras.cli.moved_data import find_moved
from tfdetr_keras.cli.train import read_run_data

if TYPE_CHECKING:
    from tfdetr_keras.models.detector import Detector

# The names of classes whose checkpoint has none.
_NAMELESS = re.compile(r"(class|LABEL)_\d+")
PARTS = ("validation", "training")  # of a run's own images


def description_of_own(options: argparse.Namespace, model: str, part: str | None = None) -> dict[str, Any]:
    """Return how the run of a folder reads its data.

    Args:
        options: of the command.
        model: the folder.
        part: that is to be measured; the validation images by default.

    Raises:
        ValueError: there is no such run, it was trained from Python, it lacks this part, or options name a data set.
    """
    if not is_run(model):
        raise ValueError(
            f"name with --data the set to measure {model} on: only the folder of a run has images of its own"
        )
    given = [name for name, value in source_arguments(options).items() if (name, value) != ("on_error", "raise")]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{flags}: name with --data the kind of the set, or leave this out to measure the run's own images"
        )
    from tfdetr_keras.training import RunFolder

    config = RunFolder(model).config()
    description = config["data"]
    if description is None:
        raise ValueError(
            f"{model} was trained from Python, and only the program knows its data: name with --data the set "
            "to measure it on"
        )
    if part != "training" and description["val_split"] is None and description["validation"] is None:
        raise ValueError(
            f"{model} was trained without validation images: name a set with --data, or measure the images "
            "that it was trained on with --part training"
        )
    return find_moved(description, Path(model), config.get("folder"))


def read_own(model: str, description: dict[str, Any], part: str = PARTS[0]) -> tuple[Any, list[str], dict[str, Any]]:
    """Return a part of a run's own images: records, class names, and the arguments of their reader."""
    (training, names), validation = read_run_data(description | {"cache": False})  # a single pass
    print(f"the {part} images of {model}")
    if part == "training":
        return training, names, description["training"]
    return validation, names, description["validation"] or description["training"]


def names_for(model: Detector, names: Sequence[str], original: bool) -> list[str]:
    """Return the set's class names, one for each of the model's classes; these may be spelled otherwise.

    Args:
        model: to measure.
        names: of the set.
        original: whether labels are category ids: some are not in use, and the model may have more than the set.

    Raises:
        ValueError: the model has other class names.
    """
    from tfdetr_keras.data.class_names import UNUSED_NAME
    from tfdetr_keras.names.classes import meaning_of

    known, names = list(model.id2label.values()), list(names)
    if original:
        names += [UNUSED_NAME] * (len(known) - len(names))
        fits = len(names) == len(known) and all(
            name == UNUSED_NAME or meaning_of(name) == meaning_of(other) or _NAMELESS.fullmatch(other)
            for name, other in zip(names, known, strict=True)
        )
    else:
        fits = [meaning_of(name) for name in names] == [meaning_of(name) for name in known]
    if not fits:
        counts = f" ({len(names)} and {len(known)})" if len(names) != len(known) else ""
        raise ValueError(
            f"the set has other classes than the model: {', '.join(names)} and {', '.join(known)}{counts}; "
            "use --category-ids or --class-names to bring them together"
        )
    return names
