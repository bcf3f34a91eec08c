"""The command line: `python -m port_weights convert SOURCE OUT.keras` and `python -m port_weights compare SOURCE`."""

from __future__ import annotations

import argparse
import logging
import sys

from port_weights.compare import compare, table
from port_weights.port import convert


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m port_weights", description="Port pretrained PyTorch DETR weights to Keras, and check the port."
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
    for command in (converting, comparing):
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
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 out of tolerance, 2 bad input."""
    options = vars(parser().parse_args(arguments))
    command, source = options.pop("command"), options.pop("source")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        if command == "convert":
            target = options.pop("target")
            model = convert(source, target, **options)
            print(f"{target}: {model.count_params():,} weights, {model.config.num_classes} classes")
            return 0
        rows, origin = compare(source, **options)
        print(f"PyTorch side: {origin}\n{table(rows)}")
        return 0 if all(row.agrees for row in rows) else 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
