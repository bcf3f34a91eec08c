"""The options that prepare images for a model in another way than the model's own."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from tfdetr_keras.preprocessing import SizeRule

RULES = (
    "by which rule images are resized. huggingface, facebook: the shorter side gets SHORT pixels, unless the longer "
    "one would pass LONG; table, of Table Transformer: the longer side gets LONG; fit: as large as fits into HEIGHT "
    "and WIDTH; stretch: to just HEIGHT and WIDTH"
)


def add_input_options(command: Any, default: str) -> None:
    """Add the options that `given_input` reads.

    Args:
        command: the command, or a group of its options.
        default: what holds if they are left out, for the help.
    """
    command.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("SHORT", "LONG"),
        help="images are resized until their shorter side is SHORT pixels, or the longer one LONG; with --size-rule "
        f"fit or stretch, HEIGHT and WIDTH (default: {default})",
    )
    command.add_argument(
        "--pad-to",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help=f"pad images to one canvas, pixels (default: {default}; with another --size, to the largest of a batch)",
    )
    command.add_argument("--size-rule", choices=get_args(SizeRule), help=f"{RULES} (default: {default})")


def given_input(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options as arguments of `preprocessing_for`; None for those that are left out."""
    return {
        "size": options.size and tuple(options.size),
        "pad_to": options.pad_to and tuple(options.pad_to),
        "size_rule": options.size_rule,
    }
