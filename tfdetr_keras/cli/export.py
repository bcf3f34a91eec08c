"""`tfdetr export`: export of a model for other runtimes, from raw images to boxes in pixels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.cli.model_options import (
    add_model_options,
    check_model,
    chosen_preprocessing,
    is_run,
    kept_thresholds,
    read_model,
)

EXAMPLES = """examples:
  tfdetr export --model run --format saved-model --out served
  tfdetr export --model run --format litert --pad-to 320 320 --precision int8 --out detector.tflite
  tfdetr export --model facebook/detr-resnet-50 --format onnx --out detr.onnx
  tfdetr export --model run --format hub --repository me/detector --license apache-2.0 --out detector
"""
CARD = ("repository", "dataset", "license")  # options of the model card
OF_ONE_FORMAT = {"precision": "litert"} | dict.fromkeys(CARD, "hub")
OTHER_NAMES = {"tflite": "litert", "tf": "saved-model", "saved_model": "saved-model", "savedmodel": "saved-model"}
FORMATS = ("saved-model", "onnx", "litert", "keras", "hub")


WITH_THRESHOLDS = ("saved-model", "onnx")  # which have room for texts


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "export",
        help="write a model for TensorFlow Serving, ONNX Runtime, LiteRT, Keras or the Hugging Face hub",
        description="Writes a model with its pre- and post-processing: it takes raw images of any size and gives "
        "scores, labels and boxes in pixels. Batch normalisation is folded. A .keras file is the folded model alone. "
        "For the hub it is a folder to upload: weights for transformers and this package, and a model card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command, batches=False)
    command.add_argument("--format", required=True, type=_format, choices=FORMATS, help="what to write")
    command.add_argument("--out", required=True, type=Path, metavar="PATH", help="the folder or file to write")
    command.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        help="of the weights, with --format litert (default: float32)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    card = command.add_argument_group("the model card, with --format hub")
    card.add_argument("--repository", metavar="OWNER/NAME", help="on the hub; the card's examples name it")
    card.add_argument("--dataset", metavar="NAME", help="what the data is called; owner/name is linked to")
    card.add_argument("--license", metavar="NAME", help="of the model, as the hub spells it: apache-2.0, mit, …")
    command.set_defaults(run=run)


def _format(text: str) -> str:
    """Return the format that a text names, by any of its names."""
    return OTHER_NAMES.get(text.lower(), text.lower())


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    for name, its_format in OF_ONE_FORMAT.items():
        value = getattr(options, name)
        if value is not None and options.format != its_format:
            raise ValueError(f"--{name} {value} is for --format {its_format}")
    check_model(options)
    path = _write(options)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{path}: {options.format}, {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")
    return 0


def _write(options: argparse.Namespace) -> Path:
    from tfdetr_keras import export
    from tfdetr_keras.export.exportable import file_to_write

    if options.format == "hub":
        _refuse_for_hub(options)
        card = {name: getattr(options, name) for name in CARD}
        return export.hub(options.model, options.out, **card, overwrite=options.overwrite)
    model = read_model(options)
    if options.format == "keras":
        path = file_to_write(options.out, ".keras", options.overwrite)
        with whole_file(path) as partial:
            (model if model.config.folded() == model.config else model.fold()).save(partial)
        return path
    extra: dict[str, Any] = {"precision": options.precision} if options.precision else {}
    if options.format in WITH_THRESHOLDS and isinstance(kept := kept_thresholds(options), dict):
        extra["thresholds"] = kept
    write = getattr(export, options.format.replace("-", "_"))
    preprocessing = chosen_preprocessing(options, model)
    return write(model, options.out, preprocessing=preprocessing, overwrite=options.overwrite, **extra)


def _refuse_for_hub(options: argparse.Namespace) -> None:
    """Raise unless the options select the run's best model, which the model card describes."""
    if not is_run(options.model):
        raise ValueError(
            f"{options.model} is not the folder of a training run, which --format hub needs; "
            "`python -m port_weights export` writes a model's weights alone"
        )
    if options.last or options.size or options.pad_to or options.size_rule:
        raise ValueError(
            "--format hub writes a run's best model as it was trained: leave out --last, --size, --pad-to, --size-rule"
        )
