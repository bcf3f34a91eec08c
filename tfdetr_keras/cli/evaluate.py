"""`tfdetr evaluate`: COCO's AP of a model on a data set, or its panoptic quality."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.cli.data_options import add_source_options, check_source_options, read_source, source_arguments
from tfdetr_keras.cli.model_options import add_model_options, check_model, input_arguments, is_run, read_model
from tfdetr_keras.cli.moved_data import find_moved
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.cli.sources import WITH_MASKS
from tfdetr_keras.cli.train import read_run_data

if TYPE_CHECKING:
    from tfdetr_keras.evaluation.coco import Evaluator
    from tfdetr_keras.models.detector import Detector

EXAMPLES = """examples:
  tfdetr evaluate --model run
  tfdetr evaluate --data shapes --model detr-tiny --size 128 128
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --model run --out results
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --category-ids original \\
      --model facebook/detr-resnet-50
  tfdetr evaluate --data coco-panoptic --images val2017 --annotations panoptic_val2017.json \\
      --segments panoptic_val2017 --category-ids original --model facebook/detr-resnet-50-panoptic
"""
# The names of classes whose checkpoint has none.
_NAMELESS = re.compile(r"(class|LABEL)_\d+")
PARTS = ("validation", "training")  # of a run's own images


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model's COCO AP, or its panoptic quality, on a data set",
        description="Runs a model over a data set and prints COCO's metrics, computed by pycocotools on boxes in "
        "pixels of the original images. A segmentation model is measured on masks, too, of data of the kind coco, and "
        "by panoptic quality alone on data of the kind coco-panoptic. The classes of the set must be those of the "
        "model, in the same order. Without --data a run of `tfdetr train` is measured on its own validation images, "
        "with --val-split those that it held back.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command)
    add_source_options(command, otherwise="the validation images of the run that --model names")
    command.add_argument(
        "--part",
        choices=PARTS,
        help=f"without --data: which of the run's own images (default: {PARTS[0]})",
    )
    command.add_argument(
        "--category-ids",
        choices=("contiguous", "original"),
        help="coco, coco-panoptic: labels count the categories from 0, as models trained here have it, or are the "
        "categories' own ids, as published COCO weights have it (default: contiguous)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="of panoptic segments; lower scores are left out (default: that of the paper's own evaluation)",
    )
    command.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="count the N highest-scoring detections of an image and a class, for sets with more objects than COCO's; "
        "at least 100 (default: 100, as in COCO)",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for metrics.json and detections.json (COCO's results format, category ids of the annotations), "
        "with masks also segmentations.json",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: name a folder")
    if options.max_detections is not None and options.max_detections < 100:
        raise ValueError(f"--max-detections must be at least COCO's 100, not {options.max_detections}")
    check_model(options)
    own = options.data is None
    if own:
        description = _description_of_own(options)  # before the model is read: most mistakes are seen here
    elif options.part is not None:
        raise ValueError(
            "--part names a part of the run's own images, which are measured without --data: leave one out"
        )
    else:
        check_source_options(options)
    from tfdetr_keras import data
    from tfdetr_keras.data.record import reader_of, tally_of
    from tfdetr_keras.evaluation.coco import Evaluator
    from tfdetr_keras.evaluation.panoptic import evaluate_panoptic
    from tfdetr_keras.training import RunFolder

    model = read_model(options)
    has_masks = model.has_masks
    if own:
        records, names, source = _read_own(options, description)
    else:
        options.masks = has_masks and options.data in WITH_MASKS
        records, names = read_source(options)
        source = source_arguments(options)
    names = _class_names(model, names, source.get("category_ids") == "original")
    arguments = input_arguments(options, model)
    if own and not any((options.batch_size, options.size, options.pad_to, options.size_rule)):
        arguments |= RunFolder(options.model).evaluation  # to the last digit as the run measured it
    reader = reader_of(records)
    total = -1 if reader is None else int(reader.entries.cardinality())
    with Counter("measured", total) as counter:
        if has_masks and source["data"] == "coco-panoptic":
            if options.max_detections is not None:
                raise ValueError("--max-detections is for boxes and masks, but a panoptic set is measured by segments")
            things = data.coco_things(source["annotations"], source.get("category_ids", "contiguous"))
            metrics = evaluate_panoptic(
                model,
                records,
                names,
                things + [False] * (len(names) - len(things)),
                progress=counter.show,
                **({} if options.threshold is None else {"threshold": options.threshold}),
                **arguments,
            )
            evaluator = None
        else:
            masks = has_masks and source["data"] in WITH_MASKS
            counted = {} if options.max_detections is None else {"max_detections": options.max_detections}
            evaluator = Evaluator(records, names, masks=masks, **counted, **arguments)
            metrics = evaluator(model, progress=counter.show)
    tally = tally_of(records)
    if tally is not None and tally.counts():
        print(tally)
    _print(metrics, options.max_detections)
    if options.out is not None:
        written = _write(metrics, evaluator, source, options.out)
        print(f"wrote {', '.join(written[:-1])}{' and ' if written[1:] else ''}{written[-1]} to {options.out}")
    return 0


def _description_of_own(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the run that `--model` names reads its data.

    Raises:
        ValueError: there is no such run, it was trained from Python, it lacks this part, or options name a data set.
    """
    if not is_run(options.model):
        raise ValueError(
            f"name with --data the set to measure {options.model} on: only the folder of a run has images of its own"
        )
    given = [name for name, value in source_arguments(options).items() if (name, value) != ("on_error", "raise")]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{flags}: name with --data the kind of the set, or leave this out to measure the run's own images"
        )
    from tfdetr_keras.training import RunFolder

    config = RunFolder(options.model).config()
    description = config["data"]
    if description is None:
        raise ValueError(
            f"{options.model} was trained from Python, and only the program knows its data: name with --data the set "
            "to measure it on"
        )
    if options.part != "training" and description["val_split"] is None and description["validation"] is None:
        raise ValueError(
            f"{options.model} was trained without validation images: name a set with --data, or measure the images "
            "that it was trained on with --part training"
        )
    return find_moved(description, Path(options.model), config.get("folder"))


def _read_own(options: argparse.Namespace, description: dict[str, Any]) -> tuple[Any, list[str], dict[str, Any]]:
    """Return a part of a run's own images: records, class names, and the arguments of their reader."""
    (training, names), validation = read_run_data(description | {"cache": False})  # a single pass
    part = options.part or PARTS[0]
    print(f"the {part} images of {options.model}")
    if part == "training":
        return training, names, description["training"]
    return validation, names, description["validation"] or description["training"]


def _class_names(model: Detector, names: Sequence[str], original: bool) -> list[str]:
    """Return the set's class names, one for each of the model's classes; these may be spelled otherwise.

    Args:
        model: to measure.
        names: of the set.
        original: whether labels are category ids: some are not in use, and the model may have more than the set.

    Raises:
        ValueError: the model has other class names.
    """
    from tfdetr_keras.data.class_names import UNUSED_NAME
    from tfdetr_keras.names.classes import meaning_of

    known, names = list(model.id2label.values()), list(names)
    if original:
        names += [UNUSED_NAME] * (len(known) - len(names))
        fits = len(names) == len(known) and all(
            name == UNUSED_NAME or meaning_of(name) == meaning_of(other) or _NAMELESS.fullmatch(other)
            for name, other in zip(names, known, strict=True)
        )
    else:
        fits = [meaning_of(name) for name in names] == [meaning_of(name) for name in known]
    if not fits:
        counts = f" ({len(names)} and {len(known)})" if len(names) != len(known) else ""
        raise ValueError(
            f"the set has other classes than the model: {', '.join(names)} and {', '.join(known)}{counts}; "
            "use --category-ids or --class-names to bring them together"
        )
    return names


def _print(metrics: Mapping[str, Any], max_detections: int | None = None) -> None:
    from tfdetr_keras.evaluation.coco import MASK, class_table, metric_names

    if "PQ" in metrics:
        rows = [(ending.strip("_") or "all", metrics, ending) for ending in ("", "_things", "_stuff")]
        rows += [(name, values, "") for name, values in metrics["per_class"].items()]
        width = max(len(name) for name, _, _ in rows)
        print(f"{'':{width}s} PQ     SQ     RQ")
        for name, values, ending in rows:
            print(f"{name:{width}s}", *(f"{values[figure + ending]:.4f}" for figure in ("PQ", "SQ", "RQ")))
        return
    kinds = ("", MASK) if f"{MASK}AP" in metrics else ("",)
    names = metric_names(max_detections) if max_detections is not None else metric_names()
    width = max(len(f"{kind}{name}") for kind in kinds for name in ["AR100 ", *names])
    for kind in kinds:
        for name in names:
            print(f"{kind + name:{width}s} {metrics[kind + name]:.4f}")
    tables = [class_table(metrics, masks=kind == MASK) for kind in kinds]
    width = max(len(name) for name in ["class", *(row[0] for row in tables[0])])
    print(f"{'class':{width}s}", *(f"{kind + name:6s}" for kind in kinds for name in ("AP", "AP50")))
    for of_class in zip(*tables, strict=True):
        print(f"{of_class[0][0]:{width}s}", *(f"{value:.4f}" for row in of_class for value in row[1:]))


def _write(metrics: Mapping[str, Any], evaluator: Evaluator | None, source: Mapping[str, Any], out: Path) -> list[str]:
    """Write the files of `--out`; return their names.

    Args:
        metrics: of the model.
        evaluator: the one that computed them, unless they are panoptic.
        source: arguments of `load_source` for the data set.
        out: the folder.
    """
    from tfdetr_keras import data
    from tfdetr_keras.evaluation.coco import write_coco_results

    written: list[str] = []
    with made_folder(out):
        if evaluator is not None:
            is_coco = source["data"] in ("coco", "coco-panoptic") and source.get("category_ids") != "original"
            category_ids = data.coco_category_ids(source["annotations"]) if is_coco else None
            with whole_file(out / "detections.json") as partial:
                write_coco_results(evaluator.detections, partial, category_ids)
            written.append("detections.json")
            if evaluator.masks:
                with whole_file(out / "segmentations.json") as partial:
                    write_coco_results(evaluator.detections, partial, category_ids, "segm")
                written.append("segmentations.json")
        write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return ["metrics.json", *written]
