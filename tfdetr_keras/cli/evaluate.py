"""`tfdetr evaluate`: COCO's AP of a model on a data set, or its panoptic quality."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.atomic import write_text
from tfdetr_keras.cli.data_options import add_source_options, check_source_options, read_source
from tfdetr_keras.cli.model_options import add_model_options, check_model, input_arguments, read_model
from tfdetr_keras.cli.progress import Counter

if TYPE_CHECKING:
    from tfdetr_keras.evaluation import Evaluator
    from tfdetr_keras.models import DETR

EXAMPLES = """examples:
  tfdetr evaluate --data shapes --model detr-tiny --size 128 128
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --model run --out results
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --category-ids original \\
      --model facebook/detr-resnet-50
  tfdetr evaluate --data coco-panoptic --images val2017 --annotations panoptic_val2017.json \\
      --segments panoptic_val2017 --category-ids original --model facebook/detr-resnet-50-panoptic
"""
# The names of classes whose checkpoint has none.
_NAMELESS = re.compile(r"(class|LABEL)_\d+")


def add_to(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the grammar."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model's COCO AP, or its panoptic quality, on a data set",
        description="Runs a model over a data set and prints COCO's metrics, computed by pycocotools on boxes in "
        "pixels of the original images. A segmentation model is measured on masks, too, of data of the kind coco, and "
        "by panoptic quality alone on data of the kind coco-panoptic. The classes of the set must be those of the "
        "model, in the same order.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command)
    add_source_options(command)
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
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for metrics.json and detections.json (COCO's results format, category ids of the annotations), "
        "with masks also segmentations.json",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: give the name of a folder")
    check_model(options)
    check_source_options(options)
    from tfdetr_keras import data
    from tfdetr_keras.data.record import reader_of, tally_of
    from tfdetr_keras.evaluation import Evaluator
    from tfdetr_keras.models import DETRForSegmentation
    from tfdetr_keras.panoptic_evaluation import evaluate_panoptic

    model = read_model(options)
    has_masks = isinstance(model, DETRForSegmentation)
    options.masks = has_masks and options.data == "coco"
    records, names = read_source(options)
    names = _class_names(model, names, options.category_ids == "original")
    reader = reader_of(records)
    total = -1 if reader is None else int(reader.entries.cardinality())
    with Counter("measured", total) as counter:
        if has_masks and options.data == "coco-panoptic":
            things = data.coco_things(options.annotations, options.category_ids or "contiguous")
            metrics = evaluate_panoptic(
                model,
                records,
                names,
                things + [False] * (len(names) - len(things)),
                progress=counter.show,
                **({} if options.threshold is None else {"threshold": options.threshold}),
                **input_arguments(options),
            )
            evaluator = None
        else:
            evaluator = Evaluator(records, names, masks=options.masks, **input_arguments(options))
            metrics = evaluator(model, progress=counter.show)
    tally = tally_of(records)
    if tally is not None and tally.counts():
        print(tally)
    _print(metrics)
    if options.out is not None:
        written = _write(metrics, evaluator, options)
        print(f"wrote {', '.join(written[:-1])}{' and ' if written[1:] else ''}{written[-1]} to {options.out}")
    return 0


def _class_names(model: DETR, names: Sequence[str], original: bool) -> list[str]:
    """The set's class names, one for each of the model's classes.

    Args:
        model: that is measured.
        names: of the set.
        original: whether labels are category ids: some are in no use, and the model may have more than the set.

    Raises:
        ValueError: the model's are others.
    """
    from tfdetr_keras.data.coco_json import UNUSED_NAME

    known, names = list(model.id2label.values()), list(names)
    if original:
        names += [UNUSED_NAME] * (len(known) - len(names))
        fits = len(names) == len(known) and all(
            name in (UNUSED_NAME, other) or _NAMELESS.fullmatch(other) for name, other in zip(names, known, strict=True)
        )
    else:
        fits = names == known
    if not fits:
        raise ValueError(
            f"the set has other classes than the model: {', '.join(names)} and {', '.join(known)}; "
            "use --category-ids or --class-names to bring them together"
        )
    return names


def _print(metrics: Mapping[str, Any]) -> None:
    from tfdetr_keras.evaluation import MASK, METRIC_NAMES, class_table

    if "PQ" in metrics:
        rows = [(ending.strip("_") or "all", metrics, ending) for ending in ("", "_things", "_stuff")]
        rows += [(name, values, "") for name, values in metrics["per_class"].items()]
        width = max(len(name) for name, _, _ in rows)
        print(f"{'':{width}s} PQ     SQ     RQ")
        for name, values, ending in rows:
            print(f"{name:{width}s}", *(f"{values[figure + ending]:.4f}" for figure in ("PQ", "SQ", "RQ")))
        return
    kinds = ("", MASK) if f"{MASK}AP" in metrics else ("",)
    width = max(len(f"{kind}AR100 ") for kind in kinds)
    for kind in kinds:
        for name in METRIC_NAMES:
            print(f"{kind + name:{width}s} {metrics[kind + name]:.4f}")
    tables = [class_table(metrics, masks=kind == MASK) for kind in kinds]
    width = max(len(name) for name in ["class", *(row[0] for row in tables[0])])
    print(f"{'class':{width}s}", *(f"{kind + name:6s}" for kind in kinds for name in ("AP", "AP50")))
    for of_class in zip(*tables, strict=True):
        print(f"{of_class[0][0]:{width}s}", *(f"{value:.4f}" for row in of_class for value in row[1:]))


def _write(metrics: Mapping[str, Any], evaluator: Evaluator | None, options: argparse.Namespace) -> list[str]:
    """Writes the files of `--out`; gives their names."""
    from tfdetr_keras import data
    from tfdetr_keras.evaluation import write_coco_results

    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    written = ["metrics.json"]
    if evaluator is not None:
        is_coco = options.data in ("coco", "coco-panoptic") and options.category_ids != "original"
        category_ids = data.coco_category_ids(options.annotations) if is_coco else None
        write_coco_results(evaluator.detections, options.out / "detections.json", category_ids)
        written.append("detections.json")
        if evaluator.masks:
            write_coco_results(evaluator.detections, options.out / "segmentations.json", category_ids, "segm")
            written.append("segmentations.json")
    return written
