"""`tfdetr app`: a page in the browser to try out a model."""

from __future__ import annotations

import argparse
import socket
import time
from pathlib import Path

from tfdetr_keras.cli.model_options import (
    add_model_options,
    check_model,
    chosen_preprocessing,
    kept_thresholds,
    read_model_for_inference,
)

EXAMPLES = """examples:
  tfdetr app --model run
  tfdetr app --model facebook/detr-resnet-50 --size 480 800 --port 8000
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "app",
        help="try a model in the browser",
        description="Opens a page in the browser: drop an image, move the threshold, see the objects that the model "
        "finds and, for one of them, where the model looks. Nothing is sent to other machines. Needs gradio: "
        "pip install 'tfdetr-keras[app]'.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command, batches=False)
    command.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port of the page; 0 takes a free one (default: 7860)"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 lets other machines in, whoever uses them (default: 127.0.0.1)",
    )
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command until Ctrl-C; return the exit status."""
    check_model(options)
    from tfdetr_keras import app

    app.require_gradio()
    port = _free_port(options.host, options.port)
    path = Path(options.model)
    name = path.resolve().name if path.exists() else options.model
    model = read_model_for_inference(options)
    kept = kept_thresholds(options)
    thresholds = kept if isinstance(kept, dict) else None
    blocks = app.page(model, name, preprocessing=chosen_preprocessing(options, model), thresholds=thresholds)
    address = app.serve(blocks, options.host, port, browser=not options.no_browser)
    print(f"{name} is at {address} until Ctrl-C", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        blocks.close(verbose=False)
    return 0


def _free_port(host: str, port: int) -> int:
    """Return the port if a page can be served there; for 0, a free one.

    Raises:
        ValueError: no page can be served there.
    """
    try:
        with socket.create_server((host, port)) as probe:
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise ValueError(f"the page cannot be served there, give another --port or --host: {error}") from error
