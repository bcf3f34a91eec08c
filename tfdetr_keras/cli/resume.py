"""`tfdetr resume`: continues a run that was stopped, or trains it for more epochs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfdetr_keras.cli.model_options import check_run
from tfdetr_keras.cli.moved_data import PATHS, find_moved, told_places
from tfdetr_keras.cli.sources import check_source
from tfdetr_keras.cli.train import named_as_validation, read_run_data, say_result, told_how_to_go_on


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "resume",
        help="continue a run that was stopped, or train it for more epochs",
        description="Continues a run of `tfdetr train` after its last finished epoch, with the same data and "
        "settings. A run that was killed ends with the weights that it would have had.",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs in all (default: as before); the schedule is then stretched to them",
    )
    command.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="continue although images or annotations were added, removed or changed since the run began; the report "
        "says so",
    )
    moved = command.add_argument_group(
        "where the data is now, if it moved", "by default where it was, or where it lay as seen from the run"
    )
    for prefix, part in (("", "training"), ("val-", "validation")):
        for name in PATHS:
            option = f"--{prefix}{name.replace('_', '-')}"
            moved.add_argument(option, metavar="PATH", help=f"of the {part} set, as given to `tfdetr train`")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    check_run(options.folder)
    from tfdetr_keras.training import RunFolder, fit_detector

    run_folder = RunFolder(options.folder)
    config = run_folder.config()
    if config["data"] is None:
        raise ValueError(
            f"{options.folder} was trained from Python, and only the program knows its data: call td.fit_detector "
            "again, with resume=True"
        )
    run_folder.refuse_lost_state()
    if not run_folder.has_epochs():
        raise ValueError(f"{options.folder}: no epoch was finished: start the run again with tfdetr train")
    settings = config["settings"] | ({} if options.epochs is None else {"epochs": options.epochs})
    description = _places(options, config)
    (records, names), validation = read_run_data(description)
    with told_how_to_go_on(options.folder):
        run_folder = fit_detector(
            records,
            names,
            options.folder,
            validation,
            config["source"],
            resume=True,
            data=description,
            accept_changed_data=options.accept_changed_data,
            **settings,
        )
    say_result(run_folder)
    return 0


def _places(options: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the run's data, with the places where it is now.

    Raises:
        ValueError: the data is not there.
    """
    description = find_moved(config["data"], options.folder, config.get("folder"))
    training = {name: getattr(options, name) for name in PATHS}
    description = told_places(description, training, {name: getattr(options, f"val_{name}") for name in PATHS})
    try:
        check_source(**description["training"])
        if description["validation"] is not None:
            with named_as_validation():
                check_source(**description["validation"])
    except ValueError as error:
        raise ValueError(f"{error}; if the data of {options.folder} moved, say where it is with this option") from error
    return description
