"""`tfdetr demo`: the whole workflow in a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    demo = commands.add_parser(
        "demo",
        help="port, compare with PyTorch, fine-tune on new classes, measure AP",
        description="The whole line in a few minutes on a CPU: ports a trained PyTorch checkpoint and compares it with "
        "PyTorch stage by stage, fine-tunes it on drawn shapes that it does not know, and measures COCO AP before and "
        "after on held-out images. Writes all that a training run writes, and report.json, whose parity is null where "
        "torch and transformers are not installed. Exits with 1 when the port is out of tolerance.",
    )
    demo.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where to write (default: out)")
    demo.add_argument("--steps", type=int, metavar="N", help="training steps (default: enough for an AP of about 0.7)")
    demo.add_argument(
        "--source",
        metavar="CHECKPOINT",
        help="checkpoint to port, compare and start from, e.g. facebook/detr-resnet-50 where the hub is reachable "
        "(default: rt-detr-tiny, which comes with the package)",
    )
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from tfdetr_keras.demo import run_demo

    return 0 if run_demo(options.out, options.steps, options.source) else 1
