"""`tfdetr inspect-data`: a data set in numbers, and a batch of it as the model will see it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tfdetr_keras.backend.atomic import made_folder, whole_file
from tfdetr_keras.cli.data_options import (
    add_batch_options,
    add_source_options,
    batch_arguments,
    check_source_options,
    read_source,
)
from tfdetr_keras.cli.progress import Counter

EXAMPLES = """examples:
  tfdetr inspect-data --data shapes --out look.png
  tfdetr inspect-data --data coco --images train2017 --annotations instances_train2017.json --out look.png
  tfdetr inspect-data --data coco --images photos --annotations train.json --masks --training --out look.png
  tfdetr inspect-data --data yolo --images my_set --split val --on-error skip --out look.png
  tfdetr inspect-data --data voc --images JPEGImages --annotations Annotations --training --buckets --out look.png
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "inspect-data",
        help="look at a data set: counts, faults, and a picture of what the model will see",
        description="Reads a detection data set once and prints what is in it: images, objects, classes, sizes, and "
        "what was left out and why. Draws its first batch as the model will see it, with boxes and, where they are "
        "read, masks: resized, padded (hatched) and, with --training, shuffled and augmented.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(command)
    add_batch_options(command, 8, "800 1333, as published DETRs have it")
    command.add_argument("--training", action="store_true", help="draw a batch for training (default: for evaluation)")
    command.add_argument(
        "--masks",
        action="store_true",
        help="coco, shapes: read the segmentations, too, check them and draw the masks; of coco-panoptic that is "
        "always done",
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="picture to write")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder: name the picture to write, e.g. {options.out / 'look.png'}")
    if options.color_jitter and not options.training:
        raise ValueError("--color-jitter changes training batches only: add --training")
    check_source_options(options)
    from tfdetr_keras import data, visualize
    from tfdetr_keras.data.record import reader_of, title_of

    dataset, class_names = read_source(options)
    # Repeated, so that a set smaller than a batch can be looked at, too; evaluation keeps its last, smaller batch.
    batches = data.prepare(dataset, training=options.training, repeat=options.training, **batch_arguments(options))
    with data.readable_errors():
        batch = next(iter(batches), None)
    if batch is None:
        raise ValueError("the set is empty: it has no record that could be read")
    # The picture first: counting a large set takes minutes.
    titles = {image_id: title_of(dataset, image_id) for image_id in batch[1]["image_id"].numpy().tolist()}
    with made_folder(options.out.parent), whole_file(options.out) as partial:
        visualize.show_batch(batch, class_names, partial, titles=titles)
    print(f"wrote {options.out}", flush=True)
    reader = reader_of(dataset)
    total = -1 if reader is None else int(reader.entries.cardinality())
    with Counter("read", total) as counter:
        summary = data.summarize(dataset, class_names, progress=counter.show)
    print(summary)
    return 0
