"""`tfdetr evaluate`: COCO's AP of a model on a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tfdetr_keras import data
from tfdetr_keras.atomic import write_text
from tfdetr_keras.cli.data_options import add_source_options, read_source
from tfdetr_keras.cli.model_options import add_model_options, input_arguments, read_model
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.data.record import reader_of
from tfdetr_keras.evaluation import METRIC_NAMES, Evaluator, class_table, write_coco_results

EXAMPLES = """examples:
  tfdetr evaluate --data shapes --model detr-tiny --size 128 128
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --model run --out results
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the grammar."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model's COCO AP on a data set",
        description="Runs a model over a data set and prints COCO's metrics, computed by pycocotools on boxes in "
        "pixels of the original images. The classes of the set must be those of the model, in the same order.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command)
    add_source_options(command)
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for metrics.json and detections.json (COCO's results format, category ids of the annotations)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: give the name of a folder")
    model = read_model(options)
    records, names = read_source(options)
    if list(model.id2label.values()) != names:
        raise ValueError(
            f"the set has other classes than the model: {', '.join(names)} and {', '.join(model.id2label.values())}; "
            "use the set's own ids or --class-names to bring them together"
        )
    reader = reader_of(records)
    total = -1 if reader is None else int(reader.entries.cardinality())
    evaluator = Evaluator(records, names, **input_arguments(options))
    with Counter("measured", total) as counter:
        metrics = evaluator(model, progress=counter.show)
    for name in METRIC_NAMES:
        print(f"{name:6s} {metrics[name]:.4f}")
    width = max(map(len, ["class", *names]))
    print(f"{'class':{width}s} AP     AP50")
    for name, value, at_half in class_table(metrics):
        print(f"{name:{width}s} {value:.4f} {at_half:.4f}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(options.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        category_ids = data.coco_category_ids(options.annotations) if options.data == "coco" else None
        write_coco_results(evaluator.detections, options.out / "detections.json", category_ids)
        print(f"wrote metrics.json and detections.json to {options.out}")
    return 0
