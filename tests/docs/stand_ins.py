"""Small sets of drawn shapes, in the forms that people keep their data in."""

import json

from PIL import Image

import tfdetr_keras as td

CLASSES = ("star", "cross", "ring")
SIZE, CANVAS = (48, 64), (64, 64)


def shapes(count, seed, size=SIZE):
    """Records of drawn shapes, and the names of their classes."""
    return td.data.load_shapes(count, seed=seed, classes=list(CLASSES), size=size)


def write_images(folder, count, seed=3, size=SIZE):
    """Drawn shapes as PNG files `0.png` …; gives their records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = list(shapes(count, seed, size)[0].as_numpy_iterator())
    for place, record in enumerate(records):
        Image.fromarray(record["image"]).save(folder / f"{place}.png")
    return records


def write_coco(images, annotations, count, seed=3):
    """The same with COCO's annotations, whose ids are sparse."""
    records = write_images(images, count, seed)
    rows = [
        {"image_id": place, "category_id": 7 * int(label) + 1, "box": [float(side) for side in box]}
        for place, record in enumerate(records)
        for label, box in zip(record["labels"], record["boxes"], strict=True)
    ]
    for number, row in enumerate(rows):
        x1, y1, x2, y2 = row.pop("box")
        row |= {"id": number + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
    content = {
        "images": [
            {"id": place, "file_name": f"{place}.png", "height": len(r["image"]), "width": len(r["image"][0])}
            for place, r in enumerate(records)
        ],
        "categories": [{"id": 7 * place + 1, "name": name} for place, name in enumerate(CLASSES)],
        "annotations": rows,
    }
    annotations.write_text(json.dumps(content))


def write_voc(images, annotations, count, seed=3, size=SIZE):
    """The same as Pascal VOC has it."""
    annotations.mkdir(parents=True, exist_ok=True)
    for place, record in enumerate(write_images(images, count, seed, size)):
        height, width = record["image"].shape[:2]
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1 + 1:.0f}</xmin><ymin>{y1 + 1:.0f}</ymin>"
            f"<xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in zip(record["labels"], record["boxes"], strict=True)
        )
        (annotations / f"{place}.xml").write_text(
            f"<annotation><filename>{place}.png</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
