"""Loading of a saved model by its path, of a `.keras` file or of a training run, whatever was imported before."""

from __future__ import annotations

import os
from pathlib import Path

from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.models.packaged import BEST_OF_RUN, packaged_checkpoints

_OF_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
# What else people have of a model, and what reads it.
_OTHER_FILES = {
    ".safetensors": "td.from_pretrained reads it",
    ".pth": "td.from_pretrained reads it",
    ".pt": "td.from_pretrained reads it",
    ".bin": "td.from_pretrained reads it",
    ".ckpt": "td.from_pretrained reads it, if it is Lightning's",
    ".h5": "such files hold weights alone: make the model first, e.g. with td.from_preset, then model.load_weights",
    ".hdf5": "such files hold weights alone: make the model first, e.g. with td.from_preset, then model.load_weights",
    ".onnx": "ONNX Runtime runs it; load the .keras file that it was exported from",
    ".tflite": "LiteRT runs it; load the .keras file that it was exported from",
}


def load_model(path: str | os.PathLike[str], compile: bool = True) -> Detector:  # named as Keras' own argument
    """Load a model from a `.keras` file, or the best one of a training run.

    `keras.saving.load_model` needs the classes of this package to be imported first; this function imports them. The
    model is the one that was saved: its class, its weights, the names of its classes, its precision, what is frozen or
    quantised in it, and, if compiled, the state of its optimizer. `td.from_pretrained` instead changes its classes, and
    reads checkpoints of other formats.

    Args:
        path: the file, or the folder of a run.
        compile: whether the model is compiled as it was when it was saved, to continue with `fit`.

    Returns:
        A model of whichever class of the family it is.

    Raises:
        ValueError: the file or folder is missing, damaged, or of another kind; the message says what reads it.
    """
    import tfdetr_keras.registered  # noqa: F401  # every class that a file may name

    return load_keras_file(_keras_file(Path(path)), compile)


def _keras_file(path: Path) -> Path:
    """Return the `.keras` file that a path stands for."""
    if path.is_dir():
        if (path / BEST_OF_RUN).is_file():
            return path / BEST_OF_RUN
        raise ValueError(f"{path} is a folder without {BEST_OF_RUN}: {_advice_on_folder(path)}")
    if path.suffix == ".keras":
        return path
    if not path.exists():
        if str(path) in packaged_checkpoints():
            raise ValueError(f"{path} is a checkpoint that comes with the package: td.from_pretrained({str(path)!r})")
        raise ValueError(
            f"{path}: no such file or folder; give a .keras file or the folder of a run. For a model on the Hugging "
            "Face hub use td.from_pretrained"
        )
    advice = _OTHER_FILES.get(path.suffix, "give a .keras file or the folder of a run")
    raise ValueError(f"{path} is not a .keras file: {advice}")


def _advice_on_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "it is a SavedModel, which tf.saved_model.load runs; load the .keras file that it was exported from"
    if any((path / f"{name}{index}").is_file() for name in _OF_HUGGING_FACE for index in ("", ".index.json")):
        return "it is in Hugging Face's format: use td.from_pretrained"
    if (path / "class_names.txt").is_file():
        return "it is the folder of a run in which no epoch was finished yet"
    if files := sorted(file.name for file in path.glob("*.keras")):
        return f"it is not the folder of a run; give one of its files: {', '.join(files)}"
    return "it is not the folder of a training run"
