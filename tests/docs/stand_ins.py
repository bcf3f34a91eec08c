"""Small sets of drawn shapes, in the forms that people keep their data in."""

import json

from PIL import Image

import tfdetr_keras as td

CLASSES = ("star", "cross", "ring")
SIZE, CANVAS = (48, 64), (64, 64)
# Instead of a published DETR: its stride, 32, lets it look at images of 800 × 1333 pixels in no time. It is not thinner
# since TensorFlow 2.21 on CPUs ends by a segmentation fault in the gradient of a 1 × 1 convolution with stride 2 and
# less than 16 channels.
SMALL = td.DETRConfig(
    backbone=td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=16),
    num_queries=10,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
)


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
        row["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    content = {
        "images": [
            {"id": place, "file_name": f"{place}.png", "height": len(r["image"]), "width": len(r["image"][0])}
            for place, r in enumerate(records)
        ],
        "categories": [{"id": 7 * place + 1, "name": name} for place, name in enumerate(CLASSES)],
        "annotations": rows,
    }
    annotations.write_text(json.dumps(content))


def write_coco_panoptic(annotations, segments, instances):
    """COCO's panoptic files of what `write_coco` wrote: its boxes as things, and around them paper, which is stuff."""
    segments.mkdir()
    content = json.loads(instances.read_text())
    content["categories"] = [category | {"isthing": 1} for category in content["categories"]]
    content["categories"].append({"id": 22, "name": "paper", "isthing": 0})
    entries = []
    for image in content["images"]:
        picture = Image.new("RGB", (image["width"], image["height"]), (200, 0, 0))
        info = [{"id": 200, "category_id": 22}]
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = map(int, annotation["bbox"])
                picture.paste((annotation["id"], 0, 0), (left, top, left + width, top + height))
                info.append({"id": annotation["id"], "category_id": annotation["category_id"]})
        drawn = {colour[0] for _, colour in picture.getcolors()}
        info = [segment for segment in info if segment["id"] in drawn]  # boxes may cover each other
        picture.save(segments / f"{image['id']}.png")
        entries.append({"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": info})
    annotations.write_text(json.dumps(content | {"annotations": entries}))


def write_voc(images, annotations, count, seed=3, size=SIZE):
    """The same as Pascal VOC has it; gives the images' names without suffix."""
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
    return [str(place) for place in range(count)]


def write_lines(file, lines):
    """A text file, with the folders that it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def write_yolo(folder, split, count, seed=3):
    """The same as a split of a YOLO folder; and its `data.yaml`."""
    for place, record in enumerate(write_images(folder / "images" / split, count, seed)):
        height, width = record["image"].shape[:2]
        lines = [
            f"{label} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
            for label, (x1, y1, x2, y2) in zip(record["labels"], record["boxes"], strict=True)
        ]
        write_lines(folder / "labels" / split / f"{place}.txt", lines)
    write_lines(folder / "data.yaml", ["train: images/train", "val: images/val", f"names: [{', '.join(CLASSES)}]"])


def write_csv(images, annotations, count, seed=3):
    """The same with a line an object in one text file."""
    lines = [
        f"{place}.png,{CLASSES[label]},{x1:g},{y1:g},{x2 - x1:g},{y2 - y1:g}"
        for place, record in enumerate(write_images(images, count, seed))
        for label, (x1, y1, x2, y2) in zip(record["labels"], record["boxes"], strict=True)
    ]
    write_lines(annotations, ["file,class,x,y,width,height", *lines])


def prepared_builder(folder, count, seed=3):
    """The same as a set `shapes` of TensorFlow Datasets, in its folder for data; gives the builder."""
    import tensorflow_datasets as tfds

    class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            label = tfds.features.ClassLabel(names=list(CLASSES))
            objects = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label})
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "objects": objects})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for place, record in enumerate(shapes(count, seed)[0].as_numpy_iterator()):
                height, width = record["image"].shape[:2]
                boxes = record["boxes"] / [width, height, width, height]
                objects = [
                    {"bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2), "label": int(label)}
                    for label, (x1, y1, x2, y2) in zip(record["labels"], boxes, strict=True)
                ]
                yield place, {"image": record["image"], "objects": objects}

    builder = Shapes(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder
