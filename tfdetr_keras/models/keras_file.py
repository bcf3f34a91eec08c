"""Models out of `.keras` files: Keras' own loading, with errors that say what the file is.

Whether the file is whole, and whose class it names, is looked at before anything is built, so that nothing of a file
runs that is not of this package.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
from keras import ops

from tfdetr_keras.backend.serialized import find_class, refuse_foreign
from tfdetr_keras.backend.whole_files import read_json, refuse_damaged_archive, refuse_stand_in
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.registry import members
from tfdetr_keras.preprocessing import Preprocessing, is_pair


def load_keras_file(path: Path, compile: bool) -> Detector:  # named as Keras' own argument
    """Load a model that `model.save` wrote.

    Args:
        path: the `.keras` file.
        compile: whether the model is compiled as it was saved, with its optimizer's state.

    Raises:
        ValueError: the file is missing or damaged, or holds a model of another kind, or weights that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    refuse_stand_in(path)
    described = _described(path)
    kind = _check_class(path, described)
    refuse_foreign([described.get("config"), described.get("compile_config") if compile else None], str(path))
    # Keras looks for a class that is not registered by its name alone.
    known: dict[str, Any] = {kind.__name__: kind}
    if kind.__name__ == "DETR" and _architecture(described).get("pre_norm"):
        # An earlier version saved a Table Transformer as a DETR.
        known[keras.saving.get_registered_name(kind)] = members()["TableTransformer"]
    try:
        with keras.saving.custom_object_scope(known):
            model = keras.saving.load_model(path, compile=compile)
    except Exception as error:  # of Keras, HDF5 and the configurations, for each value that is not what it should be
        raise ValueError(f"{path} is not a complete .keras file of a model known here: {error}") from error
    _refuse_non_finite(path, model)
    if "preprocessing" not in _architecture(described) and (earlier := _of_earlier_run(path)):
        model.preprocessing = earlier
    return model


def _architecture(described: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the architecture in that of a model."""
    architecture = described["config"].get("config")
    return architecture if isinstance(architecture, dict) else {}


def _of_earlier_run(path: Path) -> Preprocessing | None:
    """Return the preprocessing of an earlier version's run, whose models do not hold it; None if there is none.

    It stands in the run's `config.json` beside them, as sizes.
    """
    try:
        settings = read_json(path.parent / "config.json")["settings"]
        canvas = settings["pad_to"] if is_pair(settings["pad_to"]) else None
        return Preprocessing(tuple(settings["size"]), pad_to=canvas)
    except (OSError, KeyError, TypeError, ValueError):  # no run, or none of that kind
        return None


def _described(path: Path) -> dict[str, Any]:
    """Return the description of the model in a `.keras` file that is whole."""
    try:
        refuse_damaged_archive(path)
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read("config.json"))
            archive.getinfo("model.weights.h5")
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete .keras file of a model known here: {error}") from error
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        raise ValueError(
            f"{path} is not a complete .keras file of a model known here: its config.json does not describe a model"
        )
    return described


def _check_class(path: Path, described: dict[str, Any]) -> type[Detector]:
    """Return the file's class, if it is one of this package, or one of the caller's own that is derived from them."""
    name, module = described.get("class_name"), described.get("module")
    kind = find_class(described)
    if isinstance(kind, type) and issubclass(kind, Detector):
        return kind
    if "'class_name': 'Lambda'" in str(described):
        raise ValueError(f"{path} holds a {name}, no model known here, with a Lambda, whose code loading it would run")
    if isinstance(module, str) and module.split(".")[0] == "keras":
        raise ValueError(f"{path} holds a {name}, not a detector of this package: keras.saving.load_model reads it")
    raise ValueError(
        f"{path} holds a {name}, no model known here: if it is a class of yours that is derived from one of this "
        "package's, import its module first"
    )


def _refuse_non_finite(path: Path, model: Detector) -> None:
    broken = [
        variable.path
        for variable in model.weights
        if keras.backend.is_float_dtype(variable.dtype) and not bool(ops.all(ops.isfinite(variable)))
    ]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} of its weights hold values that are not finite, as after a training that diverged: "
            + ", ".join(broken[:5])
        )
