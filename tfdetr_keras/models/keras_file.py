"""Models out of `.keras` files: Keras' own loading, with errors that say what the file is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras

from tfdetr_keras.models.detr import DETR


def load_keras_file(path: Path, compile: bool) -> DETR:  # named as Keras' own argument
    """Load a model that `model.save` wrote.

    Args:
        path: the `.keras` file.
        compile: whether the model is compiled as it was saved, with its optimizer's state.

    Raises:
        ValueError: the file is missing or damaged, or holds a model of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        model = keras.saving.load_model(path, compile=compile)
    except (OSError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if foreign := _foreign_class(path):
            raise ValueError(f"{path} holds a {foreign}, no model known here, and cannot be loaded: {error}") from error
        raise ValueError(f"{path} is not a complete .keras file of a model known here: {error}") from error
    if not isinstance(model, DETR):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not a DETR or a relative of it: keras.saving.load_model reads it"
        )
    return model


def _foreign_class(path: Path) -> str | None:
    """The name of the class of the model in a `.keras` file, if that is readable and not of this package."""
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read("config.json"))
        return None if described["module"].startswith("tfdetr_keras") else described["class_name"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
