"""The command line: `tfdetr`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="tfdetr", description="DETR object detection in TensorFlow and Keras.")
    commands = top.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="port, compare with PyTorch, train on drawn shapes, measure AP",
        description="The whole line in a few minutes on a CPU: ports a PyTorch checkpoint and compares it with PyTorch "
        "stage by stage, trains a small DETR on drawn shapes, and measures COCO AP before and after on held-out "
        "images. Writes predictions.png, curves.png and report.json.",
    )
    demo.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where to write (default: out)")
    demo.add_argument("--steps", type=int, metavar="N", help="training steps (default: enough for AP50 above 0.5)")
    demo.add_argument(
        "--source",
        metavar="CHECKPOINT",
        help="checkpoint to port and compare, e.g. facebook/detr-resnet-50 where the hub is reachable "
        "(default: a small one with random weights, made on the spot)",
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 a check failed, 2 bad input."""
    options = vars(parser().parse_args(arguments))
    del options["command"]  # there is one so far
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks on the CPU it runs on
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        from tfdetr_keras.demo import run_demo  # only now: TensorFlow takes seconds to import

        return 0 if run_demo(**options) else 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
