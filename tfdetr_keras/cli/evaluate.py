"""`tfdetr evaluate`: COCO's AP of a model on a data set, or its panoptic quality."""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.cli.data_options import add_source_options, check_source_options, read_source, source_arguments
from tfdetr_keras.cli.measured_images import PARTS, description_of_own, names_for, read_own
from tfdetr_keras.cli.model_options import add_model_options, check_model, input_arguments, is_run, read_model
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.cli.sources import WITH_MASKS
from tfdetr_keras.cli.tile_options import add_tile_options, given_tiles

if TYPE_CHECKING:
    from tfdetr_keras.evaluation.coco import Evaluator

EXAMPLES = """examples:
  tfdetr evaluate --model run
  tfdetr evaluate --data shapes --model detr-tiny --size 128 128
  tfdetr evaluate --model run --out results --plots --group night='*_night.jpg'
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --model run --out results
  tfdetr evaluate --data coco --images val2017 --annotations instances_val2017.json --category-ids original \\
      --model facebook/detr-resnet-50
  tfdetr evaluate --data coco-panoptic --images val2017 --annotations panoptic_val2017.json \\
      --segments panoptic_val2017 --category-ids original --model facebook/detr-resnet-50-panoptic
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model's COCO AP, or its panoptic quality, on a data set",
        description="Runs a model over a data set and prints COCO's metrics, computed by hotcoco on boxes in "
        "pixels of the original images. A segmentation model is measured on masks, too, of data of the kind coco, and "
        "by panoptic quality alone on data of the kind coco-panoptic. The classes of the set must be those of the "
        "model, in the same order. Without --data a run of `tfdetr train` is measured on its own validation images, "
        "with --val-split those that it held back.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(command)
    add_tile_options(command)
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
    command.add_argument(
        "--plots",
        action="store_true",
        help="write a diagnosis to --out, too: report.html, with charts of errors, classes, thresholds and scores and "
        "with the worst images, and its figures, diagnosis.json",
    )
    command.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="with --plots: measure images whose files match the pattern by themselves, too, e.g. night='*_night.jpg'; "
        "may be given several times",
    )
    command.add_argument(
        "--keep-thresholds",
        action="store_true",
        help="keep with the run the threshold of each class at which its F1 is highest: predict, app and export start "
        "from them",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: name a folder")
    if options.max_detections is not None and options.max_detections < 100:
        raise ValueError(f"--max-detections must be at least COCO's 100, not {options.max_detections}")
    groups, tiles = _groups(options), given_tiles(options)
    if options.keep_thresholds and not is_run(options.model):
        raise ValueError(f"--keep-thresholds is for the folder of a run, which {options.model} is not")
    if options.keep_thresholds and options.last:
        raise ValueError(
            "--keep-thresholds is for a run's best model, which predict, app and export take: leave --last"
        )
    check_model(options)
    own = options.data is None
    if own:
        # Before the model is read: most mistakes are seen here.
        description = description_of_own(options, options.model, options.part)
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
        records, names, source = read_own(options.model, description, options.part or PARTS[0])
    else:
        options.masks = has_masks and options.data in WITH_MASKS
        records, names = read_source(options)
        source = source_arguments(options)
    names = names_for(model, names, source.get("category_ids") == "original")
    arguments = input_arguments(options, model)
    if own and not any((options.batch_size, options.size, options.pad_to, options.size_rule)):
        arguments |= RunFolder(options.model).evaluation  # to the last digit as the run measured it
    reader = reader_of(records)
    total = -1 if reader is None else int(reader.entries.cardinality())
    with Counter("measured", total) as counter:
        if has_masks and source["data"] == "coco-panoptic":
            if tiles is not None:
                raise ValueError("--tile is for boxes: a panoptic set is measured on whole images")
            if options.plots or options.keep_thresholds:
                raise ValueError("--plots and --keep-thresholds are for boxes and masks, not for a panoptic set")
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
            masks = has_masks and source["data"] in WITH_MASKS and tiles is None
            counted = {} if options.max_detections is None else {"max_detections": options.max_detections}
            evaluator = Evaluator(records, names, masks=masks, tiles=tiles, **counted, **arguments)
            metrics = evaluator(model, progress=counter.show)
    tally = tally_of(records)
    if tally is not None and tally.counts():
        print(tally)
    _print(metrics, options.max_detections)
    diagnosis = None
    if evaluator is not None and (options.plots or options.keep_thresholds):
        from tfdetr_keras.evaluation.diagnose import diagnosis_of_evaluated, write_diagnosis
        from tfdetr_keras.evaluation.diagnosis import thresholds_of

        diagnosis = diagnosis_of_evaluated(evaluator, records, _images_of(groups, evaluator, records))
    if options.keep_thresholds and diagnosis is not None:
        kept = thresholds_of(diagnosis)
        RunFolder(options.model).keep_thresholds(kept)
        print(f"kept thresholds with {options.model}: {', '.join(f'{name} {at:g}' for name, at in kept.items())}")
    if options.out is not None:
        written = _write(metrics, evaluator, source, options.out)
        if options.plots and diagnosis is not None and evaluator is not None:
            written = [*write_diagnosis(diagnosis, evaluator, records, options.out), *written]
        print(f"wrote {', '.join(written[:-1])}{' and ' if written[1:] else ''}{written[-1]} to {options.out}")
    return 0


def _groups(options: argparse.Namespace) -> dict[str, str]:
    """Return the pattern of each group of files by its name.

    Raises:
        ValueError: not of the form NAME=PATTERN, a name twice, or options that need others.
    """
    if options.plots and options.out is None:
        raise ValueError("--plots needs --out, a folder to write to")
    if options.group and not options.plots:
        raise ValueError("--group is for the diagnosis: give --plots, too")
    groups: dict[str, str] = {}
    for text in options.group:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise ValueError(f"--group {text}: expected NAME=PATTERN, such as night='*_night.jpg'")
        if name in groups:
            raise ValueError(f"--group {name} is given twice")
        groups[name] = pattern
    return groups


def _images_of(groups: Mapping[str, str], evaluator: Evaluator, records: Any) -> dict[str, list[int]]:
    """Return the ids of the images of each group of files.

    Raises:
        ValueError: no file matches a pattern.
    """
    from tfdetr_keras.data.record import file_of

    image_ids = [image["image_id"] for image in evaluator.ground_truth]
    files = {image_id: file_of(records, image_id) or "" for image_id in image_ids} if groups else {}
    found = {}
    for name, pattern in groups.items():
        own = [
            image_id
            for image_id, file in files.items()
            if fnmatch.fnmatch(file, pattern) or fnmatch.fnmatch(Path(file).name, pattern)
        ]
        if not own:
            some = next((file for file in files.values() if file), None)
            known = f", which are called like {some}" if some else ": the set's images are no files"
            raise ValueError(f"--group {name}={pattern}: no image matches{known}")
        found[name] = own
    return found


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
