"""`tfdetr predict`: a model's detections in images, as pictures and as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.cli.model_options import add_model_options, check_model, input_arguments, read_model_for_inference
from tfdetr_keras.cli.progress import Counter

if TYPE_CHECKING:
    from tfdetr_keras.models.detector import Detector

EXAMPLES = """examples:
  tfdetr predict photo.jpg --model run
  tfdetr predict photos more/*.png --model facebook/detr-resnet-50 --threshold 0.7 --out found
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
    command.add_argument(
        "--threshold", type=float, default=0.5, metavar="SCORE", help="lower scores are left out (default: 0.5)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("predictions"), metavar="DIR", help="where to write (default: predictions)"
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
    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold must be at least 0 and below 1, not {options.threshold}")
    check_model(options)
    from tfdetr_keras import data
    from tfdetr_keras.data.images import read_pixels, upright_size

    records, paths = data.load_images(options.images, options.on_error)
    for path in paths if options.on_error == "raise" else ():
        if upright_size(path) is None:
            read_pixels(path)  # says what is wrong, before anything is written
    model = read_model_for_inference(options)
    with made_folder(options.out):
        found = _draw_all(model, records, paths, options)
        write_text(options.out / "detections.json", json.dumps(found, indent=1) + "\n")
    if records.tally.counts():
        print(records.tally)
    total = sum(len(image["detections"]) for image in found)
    print(f"found {total} objects in {len(found)} images; wrote pictures and detections.json to {options.out}")
    return 0


def _draw_all(
    model: Detector, records: Any, paths: Sequence[Path], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Draw the detections in each image; return them in the format of detections.json.

    After an error there is no new picture.
    """
    from tfdetr_keras.inference.detection import detect

    found: list[dict[str, Any]] = []
    new: list[Path] = []
    try:
        with Counter("looked at", len(paths)) as counter:
            for image in detect(model, records, threshold=options.threshold, **input_arguments(options, model)):
                path = paths[image["image_id"]]
                picture = options.out / f"{image['image_id']:0{len(str(len(paths)))}d}-{path.stem}.png"
                new += [] if picture.exists() else [picture]
                with whole_file(picture) as partial:
                    detections = _draw(model, image, path, partial, options.threshold)
                found.append({"file": str(path), "picture": picture.name, "detections": detections})
                counter.show(len(found))
    except Exception:
        for picture in new:
            picture.unlink(missing_ok=True)
        raise
    return found


def _draw(model: Detector, image: dict[str, Any], path: Path, picture: Path, threshold: float) -> list[dict[str, Any]]:
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
        visualize.draw_detections([pixels], [image], names, picture, threshold=threshold, titles=[path.name])
    return detections
