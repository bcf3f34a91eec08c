"""`tfdetr export`: a model for other runtimes, from raw images to boxes in pixels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfdetr_keras import export
from tfdetr_keras.atomic import whole_file
from tfdetr_keras.cli.model_options import add_model_options, read_model, size_arguments
from tfdetr_keras.export.exportable import file_to_write

EXAMPLES = """examples:
  tfdetr export --model run --format saved-model --out served
  tfdetr export --model run --format litert --pad-to 320 320 --precision int8 --out detector.tflite
  tfdetr export --model facebook/detr-resnet-50 --format onnx --out detr.onnx
"""
WRITERS: dict[str, Callable[..., Path]] = {
    "saved-model": export.saved_model,
    "onnx": export.onnx,
    "litert": export.litert,
}


def add_to(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the grammar."""
    command = commands.add_parser(
        "export",
        help="write a model for TensorFlow Serving, ONNX Runtime, LiteRT or Keras",
        description="Writes a model with its pre- and post-processing: it takes raw images of any size and gives "
        "scores, labels and boxes in pixels. Batch normalisation is folded. A .keras file is the folded model alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command, batches=False)
    command.add_argument("--format", required=True, choices=[*WRITERS, "keras"], help="what to write")
    command.add_argument("--out", required=True, type=Path, metavar="PATH", help="the folder or file to write")
    command.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of the weights, with --format litert (default: float32)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    extra: dict[str, Any] = {}
    if options.format == "litert":
        extra["precision"] = options.precision
    elif options.precision != "float32":
        raise ValueError(f"--precision {options.precision} is for --format litert")
    model = read_model(options)
    if options.format == "keras":
        path = file_to_write(options.out, ".keras", options.overwrite)
        with whole_file(path) as partial:
            (model if model.config.backbone.batch_norm == "folded" else model.fold()).save(partial)
    else:
        sizes = size_arguments(options)
        path = WRITERS[options.format](model, options.out, **sizes, overwrite=options.overwrite, **extra)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{path}: {options.format}, {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")
    return 0
