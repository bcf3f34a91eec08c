"""`tfdetr predict`: a model's detections in images, as pictures and as JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.cli.model_options import (
    add_model_options,
    check_model,
    input_arguments,
    kept_thresholds,
    read_model_for_inference,
)
from tfdetr_keras.cli.progress import Counter
from tfdetr_keras.cli.tile_options import add_tile_options, given_tiles

if TYPE_CHECKING:
    from tfdetr_keras.data.tiles import Tiles
    from tfdetr_keras.models.detector import Detector

FORMATS = ("coco", "yolo", "voc", "label-studio", "cvat")
EXAMPLES = """examples:
  tfdetr predict photo.jpg --model run
  tfdetr predict photos more/*.png --model facebook/detr-resnet-50 --threshold 0.7 --out found
  tfdetr predict aerial --model run --tile 640 --overlap 0.2
  tfdetr predict unlabelled --model run --format label-studio
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "predict",
        help="detect objects in images",
        description="Runs a model over images and writes, for each, a picture with the boxes, and for all together "
        "detections.json: file, and per detection class, score and box (x1, y1, x2, y2 in pixels). A segmentation "
        "model's pictures show masks, and its detections have them as segmentation (COCO's run lengths).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders of them")
    add_model_options(command)
    add_tile_options(command)
    command.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="lower scores are left out (default: the threshold of each class that `tfdetr evaluate --keep-thresholds` "
        "kept with the run, or 0.5)",
    )
    command.add_argument(
        "--out", type=Path, default=Path("predictions"), metavar="DIR", help="where to write (default: predictions)"
    )
    command.add_argument(
        "--format",
        action="append",
        default=[],
        choices=FORMATS,
        help="write the detections as labels, too, to a folder of that name in --out, for a labelling tool to correct "
        "or for training, the most uncertain images first; may be given several times",
    )
    command.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an image that cannot be read, or leave it out and count it (default: raise)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if options.threshold is not None and not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold must be at least 0 and below 1, not {options.threshold}")
    tiles = given_tiles(options)
    check_model(options)
    from tfdetr_keras import data
    from tfdetr_keras.data.images import read_pixels, upright_size

    records, paths = data.load_images(options.images, options.on_error)
    for path in paths if options.on_error == "raise" else ():
        if upright_size(path) is None:
            read_pixels(path)  # says what is wrong, before anything is written
    model = read_model_for_inference(options)
    threshold = options.threshold if options.threshold is not None else kept_thresholds(options)
    with made_folder(options.out):
        found = _draw_all(model, records, paths, options, threshold, tiles)
        write_text(options.out / "detections.json", json.dumps(found, indent=1) + "\n")
        for name in dict.fromkeys(options.format):
            _write_labels(name, found, model.id2label, options.out / name)
    if records.tally.counts():
        print(records.tally)
    total = sum(len(image["detections"]) for image in found)
    print(f"found {total} objects in {len(found)} images; wrote pictures and detections.json to {options.out}")
    return 0


def _draw_all(
    model: Detector,
    records: Any,
    paths: Sequence[Path],
    options: argparse.Namespace,
    threshold: float | Mapping[str, float],
    tiles: Tiles | None,
) -> list[dict[str, Any]]:
    """Draw the detections in each image; return them in the format of detections.json.

    After an error there is no new picture.
    """
    from tfdetr_keras.inference.detection import detect
    from tfdetr_keras.inference.postprocess import threshold_of_each
    from tfdetr_keras.inference.tiled import detect_tiled
    from tfdetr_keras.inference.uncertainty import LEAST, uncertainty

    names = model.id2label
    wanted = dict(zip(names.values(), threshold_of_each(list(names.values()), threshold).tolist(), strict=True))
    # Whoever labels wants to know of what was nearly found, too.
    lower = {name: min(at, LEAST) for name, at in wanted.items()} if options.format else threshold
    arguments = {"threshold": lower, **input_arguments(options, model)}
    images = detect(model, records, **arguments) if tiles is None else detect_tiled(model, records, tiles, **arguments)
    found: list[dict[str, Any]] = []
    new: list[Path] = []
    try:
        with Counter("looked at", len(paths)) as counter:
            for seen in images:
                image = _above(seen, threshold_of_each([names[label] for label in seen["labels"].tolist()], wanted))
                path = paths[image["image_id"]]
                picture = options.out / f"{image['image_id']:0{len(str(len(paths)))}d}-{path.stem}.png"
                new += [] if picture.exists() else [picture]
                with whole_file(picture) as partial:
                    detections = _draw(model, image, path, partial, threshold)
                found.append({"file": str(path), "picture": picture.name, "detections": detections})
                if options.format:
                    found[-1]["uncertainty"] = uncertainty(seen["scores"])
                counter.show(len(found))
    except Exception:
        for picture in new:
            picture.unlink(missing_ok=True)
        raise
    return found


def _above(image: dict[str, Any], limits: Any) -> dict[str, Any]:
    """Return the detections of an image whose scores exceed their thresholds."""
    kept = image["scores"] > limits
    return {key: value if key == "image_id" else value[kept] for key, value in image.items()}


def _write_labels(form: str, found: Sequence[Mapping[str, Any]], names: Mapping[int, str], folder: Path) -> None:
    """Write detections as labels, the most uncertain images first.

    Args:
        form: of `FORMATS`.
        found: the content of detections.json.
        names: of the labels.
        folder: to write to.
    """
    import numpy as np

    from tfdetr_keras.data.annotation_formats import WRITERS, LabelledImage
    from tfdetr_keras.data.images import upright_size

    label_of = {name: label for label, name in names.items()}
    files = [Path(image["file"]).resolve() for image in found]
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    images = []
    for image, file in sorted(zip(found, files, strict=True), key=lambda pair: -pair[0]["uncertainty"]):
        size = upright_size(file)
        if size is not None:
            objects = image["detections"]
            images.append(
                LabelledImage(
                    file.relative_to(common).as_posix(),
                    *size,
                    np.array([one["box"] for one in objects], np.float64).reshape(-1, 4),
                    np.array([label_of[one["class"]] for one in objects], np.int64),
                    np.array([one["score"] for one in objects], np.float64),
                )
            )
    WRITERS[form](images, [names[label] for label in sorted(names)], folder)


def _draw(
    model: Detector, image: dict[str, Any], path: Path, picture: Path, threshold: float | Mapping[str, float]
) -> list[dict[str, Any]]:
    """Draw the detections in an image; return them in the format of detections.json."""
    from tfdetr_keras import visualize
    from tfdetr_keras.data.images import decode_image
    from tfdetr_keras.data.segmentations import run_lengths
    from tfdetr_keras.inference.segments import lay_masks

    names = model.id2label
    pixels = decode_image(path.read_bytes(), notice=lambda *_: None)  # which the records have told of
    rows = zip(image["labels"].tolist(), image["scores"].tolist(), image["boxes"].tolist(), strict=True)
    detections = [{"class": names[label], "score": score, "box": box} for label, score, box in rows]
    if "masks" in image:
        visualize.draw_segments([pixels], [lay_masks(image)], names, picture, titles=[path.name])
        for detection, lengths in zip(detections, run_lengths(image["masks"]), strict=True):
            detection["segmentation"] = lengths | {"counts": lengths["counts"].decode()}
    else:
        drawn_from = None if isinstance(threshold, Mapping) else threshold
        visualize.draw_detections([pixels], [image], names, picture, threshold=drawn_from, titles=[path.name])
    return detections
