"""Trains a small model with a mask head on twelve photographs, and draws the figure of the page on segmentation.

What it found alone is the picture of the home page, `found.jpg` beside it.

    python docs/figures/segmentation.py COCO128 RUNS [docs/images/segmentation.jpg]

COCO128 is a folder with COCO's `images/` and `annotations/instances_train2017.json`. In RUNS the two stages keep their
folders, some ten minutes of two CPU cores; what is there already is not trained again.

Only photographs are taken whose licence lets them be shown here: COCO's numbers 4 (CC BY 2.0) and 7 (no known copyright
restrictions).
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

import tfdetr_keras as td
from tfdetr_keras.inference.segments import lay_masks
from tfdetr_keras.visualize.lettering import font
from tfdetr_keras.visualize.tiles import GAP

CANVAS = (192, 192)
LICENCES = (4, 7)
PHOTOGRAPHS, MOST_OBJECTS, LEAST_AREA = 12, 4, 4000  # area in pixels²
SHOWN = (72, 73, 309, 529)
CELL = 400  # pixels
EPOCHS, STEPS = {"boxes": 12, "masks": 20}, 60
HERE = Path(__file__).parent
BACKBONE = td.ResNetConfig(
    block="basic", depths=(1, 2, 2, 2), channels=(32, 64, 96, 128), stem_channels=32, batch_norm="trainable"
)


def photographs(folder):
    """The records to learn, and the names of COCO's classes."""
    annotations = folder / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    areas = {image["id"]: [] for image in content["images"] if image["license"] in LICENCES}
    for annotation in content["annotations"]:
        areas.get(annotation["image_id"], []).append(0 if annotation["iscrowd"] else annotation["area"])
    suited = [key for key, found in areas.items() if 0 < len(found) <= MOST_OBJECTS and min(found) >= LEAST_AREA]
    chosen = tf.constant(sorted(suited)[:PHOTOGRAPHS], tf.int64)
    records, names = td.data.load_coco(folder / "images", annotations, masks=True)
    return records.filter(lambda record: tf.reduce_any(record["image_id"] == chosen)).cache(), names


def trained(records, names, folder):
    """The model after both stages, the boxes and then the masks."""
    recipe = {
        "size": CANVAS,
        "pad_to": CANVAS,
        "max_boxes": MOST_OBJECTS,
        "augmentation": "none",
        "batch_size": PHOTOGRAPHS // 2,
        "steps_per_epoch": STEPS,
        "learning_rate": 1e-3,
        "warmup_steps": STEPS,
        "evaluate_every": 4,
        "resume": True,
    }
    start = folder / "start.keras"
    if not start.exists():
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.set_random_seed(0)
        none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
        widths = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
        depths = {"encoder_layers": 2, "decoder_layers": 3}
        td.DETR(td.DETRConfig(BACKBONE, len(names), num_queries=12, **widths, **depths, **none)).save(start)
    first = {"source": start, "random_weights": True, "pretraining_epochs": 1}
    boxes = td.fit_detector(records, names, folder / "boxes", records, epochs=EPOCHS["boxes"], **first, **recipe)
    second = {"source": boxes.path, "masks": True}
    masks = td.fit_detector(records, names, folder / "masks", records, epochs=EPOCHS["masks"], **second, **recipe)
    return masks.load_model()


def picture(objects, names, image):
    """Masks over their photograph."""
    laid = lay_masks({"scores": np.ones(len(objects["labels"])), **objects})  # what is annotated is sure
    return td.visualize.image_of_segments(td.Segments(**laid, class_names=names, image=image), CELL)


def main(coco128, runs, path):
    """Writes the figure."""
    records, names = photographs(Path(coco128))
    model = trained(records, names, Path(runs))
    chosen = records.filter(lambda record: tf.reduce_any(record["image_id"] == tf.constant(SHOWN, tf.int64)))
    truths = list(chosen.as_numpy_iterator())
    rows = {"annotated": truths, "found": list(td.detect(model, chosen, CANVAS, pad_to=CANVAS))}
    pictures = {
        title: [picture(objects, names, truth["image"]) for objects, truth in zip(row, truths, strict=True)]
        for title, row in rows.items()
    }
    widths = [cell.width for cell in pictures["found"]]
    band = 2 * font().size
    figure = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), len(rows) * (CELL + band) + GAP), "white")
    for top, (title, cells) in zip(range(0, figure.height, CELL + band), pictures.items(), strict=False):
        ImageDraw.Draw(figure).text((GAP, top + band // 4), title, fill="black", font=font())
        for place, cell in enumerate(cells):
            figure.paste(cell, (GAP + sum(widths[:place]) + GAP * place, top + band))
    figure.save(path, quality=85)
    figure.crop((0, CELL + 2 * band - GAP, *figure.size)).save(Path(path).with_name("found.jpg"), quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:3], sys.argv[3] if len(sys.argv) > 3 else HERE.parent / "images" / "segmentation.jpg")
