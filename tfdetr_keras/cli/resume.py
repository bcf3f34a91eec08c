"""`tfdetr resume`: goes on with a run that was stopped, or trains it for more epochs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tfdetr_keras.cli.model_options import check_run
from tfdetr_keras.cli.train import read_run_data, say_result, told_how_to_go_on


def add_to(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the grammar."""
    command = commands.add_parser(
        "resume",
        help="go on with a run that was stopped, or for more epochs",
        description="Goes on with a run of `tfdetr train` after its last finished epoch, with the same data and "
        "settings. A run that was killed ends with the weights that it would have had.",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs in all (default: as before); the schedule is then stretched to them",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    check_run(options.folder)
    from tfdetr_keras.training import RunFolder, fit_detector

    run_folder = RunFolder(options.folder)
    config = run_folder.config()
    if config["data"] is None:
        raise ValueError(
            f"{options.folder} was trained from Python, and only the program knows its data: call td.fit_detector "
            "again, with resume=True"
        )
    if not run_folder.has_epochs():
        raise ValueError(f"{options.folder}: no epoch was finished: start it again with tfdetr train")
    settings = config["settings"] | ({} if options.epochs is None else {"epochs": options.epochs})
    (records, names), validation = read_run_data(config["data"])
    with told_how_to_go_on(options.folder):
        run_folder = fit_detector(
            records, names, options.folder, validation, config["source"], resume=True, data=config["data"], **settings
        )
    say_result(run_folder)
    return 0
