"""`tfdetr compare`: whether one model is better than another on the same images, and whether that may be chance."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.cli.data_options import add_source_options, check_source_options, read_source, source_arguments
from tfdetr_keras.cli.measured_images import description_of_own, names_for, read_own
from tfdetr_keras.cli.model_options import check_model, is_run, read_model
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.cli.sources import WITH_MASKS

EXAMPLES = """examples:
  tfdetr compare run other-run
  tfdetr compare run other-run --out comparison
  tfdetr compare rt-detr-tiny run --data coco --images photos --annotations test.json
"""
RESAMPLES = 1000
FIGURES, PICTURE = "comparison.json", "comparison.png"
# What says which images a run held back.
_HELD_BACK = ("validation", "val_split", "split_seed", "split_by")


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "compare",
        help="compare two models on the same images",
        description="Measures two models on the same images and prints COCO's metrics of both, the differences, and "
        "intervals that hold 95 of 100 differences of images drawn anew: one without 0 in it is hardly chance. Without "
        "--data two runs of `tfdetr train` are compared on their validation images, which must be the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = "folder of a run (its best model), or whatever `tfdetr evaluate --model` takes"
    command.add_argument("first", metavar="RUN_A", help=models)
    command.add_argument("second", metavar="RUN_B", help="the other one")
    add_source_options(command, otherwise="the validation images of both runs")
    command.add_argument(
        "--category-ids",
        choices=("contiguous", "original"),
        help="as for evaluate (default: contiguous)",
    )
    command.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        metavar="N",
        help=f"how often images are drawn anew for the intervals; 0 for none (default: {RESAMPLES})",
    )
    command.add_argument(
        "--max-detections",
        type=int,
        default=100,
        metavar="N",
        help="of an image and a class that count (default: 100)",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {FIGURES} and {PICTURE}")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: name a folder")
    if options.resamples < 0:
        raise ValueError(f"--resamples must be at least 0, not {options.resamples}")
    if options.max_detections < 100:
        raise ValueError(f"--max-detections must be at least COCO's 100, not {options.max_detections}")
    both = [_of_model(options, name) for name in (options.first, options.second)]
    for one in both:
        check_model(one)
    own = options.data is None
    if own:
        description = _common(options)
    else:
        check_source_options(options)
    from tfdetr_keras.data.record import reader_of
    from tfdetr_keras.evaluation.coco import Evaluator
    from tfdetr_keras.evaluation.comparison import compare_detections
    from tfdetr_keras.training import RunFolder

    models = [read_model(one) for one in both]
    masks = all(model.has_masks for model in models)
    if own:
        records, names, source = read_own(options.first, description)
    else:
        options.masks = masks and options.data in WITH_MASKS
        records, names = read_source(options)
        source = source_arguments(options)
    if source["data"] == "coco-panoptic":
        raise ValueError("compare is for boxes and masks, not for panoptic sets")
    masks = masks and source["data"] in WITH_MASKS
    reader = reader_of(records)
    total = -1 if reader is None else int(reader.entries.cardinality())
    evaluators = []
    for one, model in zip(both, models, strict=True):
        names = names_for(model, names, source.get("category_ids") == "original")
        how = RunFolder(one.model).evaluation if is_run(one.model) else {}
        evaluators.append(Evaluator(records, names, masks=masks, max_detections=options.max_detections, **how))
        with Counter(f"measured {one.model} on", total) as counter:
            evaluators[-1](model, progress=counter.show)
    first, second = evaluators
    comparison = compare_detections(
        first.ground_truth,
        first.detections,
        second.detections,
        names,
        "segm" if masks else "bbox",
        options.max_detections,
        options.resamples,
    )
    _print(comparison, options.first, options.second)
    if options.out is not None:
        from tfdetr_keras.visualize.comparison import draw_comparison

        with made_folder(options.out):
            write_text(options.out / FIGURES, json.dumps(comparison, indent=1) + "\n")
            with whole_file(options.out / PICTURE) as partial:
                draw_comparison(comparison, partial, (options.first, options.second))
        print(f"wrote {FIGURES} and {PICTURE} to {options.out}")
    return 0


def _of_model(options: argparse.Namespace, model: str) -> argparse.Namespace:
    """Return the options of a command on one model."""
    return argparse.Namespace(**vars(options) | {"model": model, "last": False, "size": None})


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the first run reads its data.

    Raises:
        ValueError: the runs held other images back.
    """
    first, second = (description_of_own(options, model) for model in (options.first, options.second))

    def held_back(description: Mapping[str, Any]) -> list[Any]:
        whole = description["training"] if description["val_split"] is not None else None
        return [whole, *(description.get(key) for key in _HELD_BACK)]

    if held_back(first) != held_back(second):
        raise ValueError(
            f"{options.first} and {options.second} have other validation images: name with --data a set that neither "
            "was trained on"
        )
    return first


def _print(comparison: Mapping[str, Any], first: str, second: str) -> None:
    print(f"A {first}\nB {second}\n{comparison['images']} images")
    rows = [("", "A", "B", "B − A", "95 of 100" if comparison["resamples"] else "")]
    for name, one in comparison["metrics"].items():
        interval = f"{one['low']:+.4f} … {one['high']:+.4f}" if "low" in one else ""
        rows.append((name, *_cells(one), interval))
    rows += [(name, *_cells(one), "") for name, one in comparison["classes"].items()]
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        print(f"{name:{width}s}", *(f"{cell:>8s}" for cell in cells[:3]), "", cells[3])


def _cells(one: Mapping[str, Any]) -> tuple[str, str, str]:
    difference = "–" if one["difference"] is None else f"{one['difference']:+.4f}"
    return f"{one['first']:.4f}", f"{one['second']:.4f}", difference
