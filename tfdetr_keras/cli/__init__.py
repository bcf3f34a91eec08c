"""The command line, `tfdetr`: one file a command, and one with the options that commands share."""

from __future__ import annotations

import argparse
import logging
import re
import sys

import tensorflow as tf

from tfdetr_keras.cli import app, demo, evaluate, export, inspect_data, predict, resume, train

# Where in a graph an error of TensorFlow's came up: {{function_node …}}, [[{{node …}}]], [Op:…] name: …
_GRAPH_PLACES = re.compile(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*", re.DOTALL)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="tfdetr", description="DETR object detection in TensorFlow and Keras.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, inspect_data, train, resume, evaluate, predict, app, export):
        command.add_to(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 a check failed, 2 bad input."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("tfdetr_keras").setLevel(logging.INFO)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        message = str(error)
    except tf.errors.OpError as error:  # such as a damaged TFRecord file
        message = " ".join(_GRAPH_PLACES.sub("", error.message).split())
    print(f"error: {message}", file=sys.stderr)
    return 2
