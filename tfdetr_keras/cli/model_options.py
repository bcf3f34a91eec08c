"""The options that name a command's model, and how images are prepared for it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.cli.input_options import add_input_options, given_input
from tfdetr_keras.models.packaged import find_source, packaged_names
from tfdetr_keras.preprocessing import Preprocessing, preprocessing_for

if TYPE_CHECKING:
    from tfdetr_keras.models.detector import Detector

# A source of weights that ends like this, or begins like a path, is a file or folder; other names may be a hub's.
_WEIGHT_FILES = (".keras", ".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".h5")
# The weights of a folder in Hugging Face's format, by any of these.
_OF_HUGGING_FACE = tuple(
    f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
_PATHS = ("/", "./", "../", "~")


def add_model_options(command: argparse.ArgumentParser, batches: bool = True) -> None:
    """Add the options that `read_model`, `chosen_preprocessing` and `input_arguments` read.

    Args:
        command: that runs a model.
        batches: whether the command makes batches of images itself.
    """
    command.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=f"folder of a run (its best model), {packaged_names()}, or whatever else `tfdetr train --from` takes as "
        "weights",
    )
    command.add_argument("--last", action="store_true", help="of a run, the last model instead of the best")
    add_input_options(command, "as the model was trained")
    if batches:
        command.add_argument(
            "--batch-size", type=int, metavar="N", help="images a batch (default: 1; 8 with one canvas)"
        )


def is_run(model: str) -> bool:
    """Return whether the name of a model is that of a training run's folder."""
    folder = Path(model)
    return (folder / "config.json").is_file() and not any((folder / name).exists() for name in _OF_HUGGING_FACE)


def check_model(options: argparse.Namespace) -> None:
    """Check the option --model, as far as this needs neither TensorFlow nor a network.

    Raises:
        ValueError: a missing file or folder, or --last with something that is not a run.
    """
    if options.last and not is_run(options.model):
        raise ValueError(f"--last is for the folder of a run, which {options.model} is not")
    check_weights(options.model)


def check_weights(source: str) -> None:
    """Check that a source of weights exists, if its name is that of a file or folder.

    Raises:
        ValueError: it does not exist.
    """
    if Path(source).exists():
        return
    if source.endswith(_WEIGHT_FILES) or source.startswith(_PATHS) or source.count("/") > 1:
        raise ValueError(f"{source}: no such file or folder")


def check_run(folder: Path) -> None:
    """Check that a folder is that of a training run.

    Raises:
        ValueError: it does not exist, or holds no run.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not is_run(str(folder)):
        raise ValueError(f"{folder} is not the folder of a training run: it has no config.json")


def read_model(options: argparse.Namespace) -> Detector:
    """Return the model that the options name, after `check_model` has checked it.

    Raises:
        ValueError: as `DETR.from_pretrained`; or a checkpoint's `preprocessor_config.json` cannot be followed.
    """
    from port_weights.processor import check_processor
    from tfdetr_keras.models import from_pretrained
    from tfdetr_keras.training import RunFolder

    if is_run(options.model):
        return RunFolder(options.model).load_model("last" if options.last else "best")
    source = _source(options)
    check_processor(source, with_size=options.size is None)
    return from_pretrained(source)


def read_model_for_inference(options: argparse.Namespace) -> Detector:
    """Return the model that the options name, with its batch normalisation folded; see `read_model`."""
    model = read_model(options)
    return model.fold() if model.config.is_foldable else model


def kept_thresholds(options: argparse.Namespace) -> float | dict[str, float]:
    """Return the threshold of each class that was kept with the run of the options, or one for all.

    Raises:
        ValueError: the run's thresholds were changed to something else than numbers.
    """
    from tfdetr_keras.inference.postprocess import THRESHOLD
    from tfdetr_keras.training import RunFolder

    if not is_run(options.model) or options.last:
        return THRESHOLD
    return RunFolder(options.model).thresholds or THRESHOLD


def input_arguments(options: argparse.Namespace, model: Detector) -> dict[str, Any]:
    """Return how images become batches: arguments of `evaluate_detections` and `detect`."""
    preprocessing = chosen_preprocessing(options, model)
    batch_size = options.batch_size or (8 if preprocessing.pad_to else 1)
    return {"preprocessing": preprocessing, "batch_size": batch_size}


def chosen_preprocessing(options: argparse.Namespace, model: Detector) -> Preprocessing:
    """Return how images are prepared: as for the model, except for what the options change."""
    return preprocessing_for(model, **given_input(options))


def _source(options: argparse.Namespace) -> Any:
    """Return the file or folder of a model that is not a run, or the hub's commit.

    The commit is kept with the options, to be looked up once.
    """
    from port_weights.hub import fetch, is_hub_id

    if not is_hub_id(options.model):
        return find_source(options.model)
    if not hasattr(options, "commit"):
        options.commit = fetch(options.model)
    return options.commit
