"""The command line, `tfdetr`: one file a command, and one with the options that commands share."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tfdetr_keras.cli import demo, inspect_data


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="tfdetr", description="DETR object detection in TensorFlow and Keras.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, inspect_data):
        command.add_to(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 a check failed, 2 bad input."""
    options = parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks on the CPU it runs on
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
