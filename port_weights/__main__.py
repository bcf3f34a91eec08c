"""The command line: `python -m port_weights convert`, `compare` and `export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from tfdetr_keras.cli import INTERRUPTED, standard_error
from tfdetr_keras.cli.input_options import add_input_options
from tfdetr_keras.cli.model_options import check_weights

EXPORT = """\
Write a model trained in Keras for PyTorch.

A folder (the usual case) is what Hugging Face's transformers loads by itself:

  transformers.AutoModelForObjectDetection.from_pretrained("DIR")
  transformers.AutoImageProcessor.from_pretrained("DIR")

A name that ends in .pth becomes a checkpoint as facebookresearch/detr has it. Either appears complete or not at all,
and `convert` reads both back.
"""
EXPORT_EXAMPLES = """\
examples:
  python -m port_weights export detector.keras detector-hf
  python -m port_weights export detector.keras detector-hf --size 480 800 --overwrite
  python -m port_weights export dc5.keras dc5-hf --backbone timm
  python -m port_weights export detector.keras detector.pth
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m port_weights",
        description="Port pretrained PyTorch DETR weights to Keras, check the port, write Keras models for PyTorch.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    converting = commands.add_parser(
        "convert",
        help="write a checkpoint as a .keras file",
        description="Write a PyTorch checkpoint as a .keras file, which appears complete or not at all.",
    )
    comparing = commands.add_parser(
        "compare",
        help="hold a checkpoint's Keras port against PyTorch",
        description="Run a checkpoint in PyTorch and in Keras on the same padded batch and print the largest "
        "difference of every stage. Exits with 1 when one is out of tolerance. Needs torch and transformers.",
    )
    exporting = commands.add_parser(
        "export",
        help="write a Keras model for Hugging Face's transformers, or as a .pth file",
        description=EXPORT,
        epilog=EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for command in (converting, comparing, exporting):
        command.add_argument(
            "source",
            metavar="SOURCE",
            help="hub id, folder with config.json and model.safetensors, .safetensors, .pth or .keras file",
        )
        command.add_argument("--revision", help="branch, tag or commit, for a hub id")
        command.add_argument(
            "--heads", type=int, help="attention heads, for a checkpoint without config.json (default: 8)"
        )
        command.add_argument(
            "--dilation",
            action=argparse.BooleanOptionalAction,
            help="whether a checkpoint without config.json is a DC5 model",
        )
    converting.add_argument("target", metavar="OUT.keras", help="the file to write")
    converting.add_argument("--num-classes", type=int, help="make a new class head for that many classes")
    converting.add_argument("--num-queries", type=int, help="keep the first queries, or add fresh ones")
    _add_export_options(exporting)
    return top


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="DIR", help="the folder to write, or a file whose name ends in .pth")
    command.add_argument(
        "--format",
        choices=("hf", "pth"),
        help="hf: a Hugging Face folder; pth: a facebookresearch checkpoint, which needs torch (default: pth for a "
        "name that ends in .pth, else hf)",
    )
    command.add_argument(
        "--backbone",
        choices=("hugging-face", "timm"),
        help="hf: whose ResNet the model is to have there. hugging-face: transformers' own, which has no dilation "
        "(DC5); timm: that of the package timm, which readers must then have installed (default: hugging-face)",
    )
    processor = command.add_argument_group("hf: what the image processor does")
    add_input_options(processor, "as the model was trained")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export of that name")


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; the process's own by default, whose stderr is then filtered.

    Returns:
        The exit status: 0 done, 1 out of tolerance, 2 bad input, 130 stopped by Ctrl-C.
    """
    options = vars(parser().parse_args(arguments))
    commands: dict[str, Callable[..., int]] = {"convert": _convert, "compare": _compare, "export": _export}
    try:
        standard_error.configure(whole_process=arguments is None)
        check_weights(options["source"])
        return commands[options.pop("command")](**options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _convert(source: str, target: str, **options: Any) -> int:
    from tfdetr_keras.models.pretrained import convert

    model = convert(source, target, **options)
    print(f"{target}: {model.count_params():,} weights, {model.config.num_classes} classes")
    return 0


def _compare(source: str, **options: Any) -> int:
    from port_weights.compare import compare, table

    rows, origin = compare(source, **options)
    print(f"PyTorch side: {origin}\n{table(rows)}")
    return 0 if all(row.agrees for row in rows) else 1


def _export(source: str, target: str, format: str | None, **options: Any) -> int:
    from port_weights.exports import export, export_pth

    folder_options = ("backbone", "pad_to", "size", "size_rule")
    for name in folder_options:
        if options[name] is None:
            del options[name]
    if format == "pth" or (format is None and target.endswith(".pth")):
        if given := [name.replace("_", "-") for name in folder_options if name in options]:
            raise ValueError(f"--{given[0]} is of a Hugging Face folder, and {target} is to be a .pth file")
        model = export_pth(source, target, **options)
    else:
        model = export(source, target, **options)
    print(f"{target}: {model.count_params():,} weights, {model.config.num_classes} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
