"""The command line, `tfdetr`: one file per command, and files with the options that commands share.

The grammar is read, and everything that needs neither Keras nor TensorFlow is checked, before these are loaded: that
takes seconds, which nobody should wait for who asks for help or has mistyped a name. So a command's file imports at its
top what its options need, and in its functions what runs it.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys

from tfdetr_keras import __version__
from tfdetr_keras.backend.full_disk import FullDiskError, is_full_disk
from tfdetr_keras.cli import app, compare, demo, evaluate, export, inspect_data, predict, resume, standard_error, train
from tfdetr_keras.cli.grammar import Parser

# Where in a graph an error of TensorFlow's came up: {{function_node …}}, [[{{node …}}]], [Op:…] name: …
_GRAPH_PLACES = re.compile(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*", re.DOTALL)
FAILED = 1
INTERRUPTED = 130  # as shells have it: 128 and the number of the signal


class _Version(argparse.Action):
    """An action that prints the versions a bug report should name; they are looked up only on demand."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        def of(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        python = platform.python_version()
        print(f"tfdetr {__version__} (Keras {of('keras')}, TensorFlow {of('tensorflow')}, Python {python})")
        parser.exit()


def parser() -> Parser:
    """Make the parser of the command line."""
    top = Parser(prog="tfdetr", description="DETR object detection in TensorFlow and Keras.")
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions that count and exit")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, inspect_data, train, resume, evaluate, compare, predict, app, export):
        command.add_to(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; by default the process's own, and its stderr is then filtered.

    Returns:
        The exit status: 0 done, 1 a check failed or the disk is full, 2 bad input, 130 stopped by Ctrl-C.
    """
    options = parser().parse_args(arguments)
    try:
        standard_error.configure(whole_process=arguments is None)
        return options.run(options)
    except FullDiskError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (OSError, ValueError) as error:
        message = options.parser.in_options(str(error))
    except KeyboardInterrupt as stop:  # with how to go on, from a command that can
        print(f"stopped; {stop}" if str(stop) else "stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if is_full_disk(error):  # in the words of a library
            print(f"error: the disk is full: {error}", file=sys.stderr)
            return FAILED
        if not _is_tensorflow_error(error):
            raise
        message = " ".join(_GRAPH_PLACES.sub("", str(getattr(error, "message", error))).split())
    print(f"error: {message}", file=sys.stderr)
    return 2


def _is_tensorflow_error(error: Exception) -> bool:
    """Return whether TensorFlow refused data, such as a damaged TFRecord file."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)
