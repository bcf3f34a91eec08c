"""Objects of images in the files of others: COCO, YOLO, Pascal VOC, and what Label Studio and CVAT import.

Boxes keep all digits that tell a hundredth of a pixel apart, so that what is read again is what was written.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml

from tfdetr_keras.backend.atomic import made_folder, write_text

DIGITS = 4  # of pixels, behind the point
SHARES = 9  # of an image's side, behind the point
# Label Studio's names of the tags in a project's labelling interface, see `write_label_studio`.
LABEL_STUDIO_LABEL, LABEL_STUDIO_IMAGE = "label", "image"


class LabelledImage(NamedTuple):
    """An image and its objects, for a file.

    Attributes:
        file: of the image, from the folder of the set on, with slashes.
        height: pixels.
        width: pixels.
        boxes: `(objects, 4)` xyxy pixels.
        labels: `(objects,)` int.
        scores: `(objects,)` of detections, or None of objects that people labelled.
        is_crowd: `(objects,)` bool, or None where none is.
    """

    file: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    is_crowd: np.ndarray | None = None


def write_coco(images: Iterable[LabelledImage], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write `annotations.json`, COCO's instances, with ids of categories from 0; detections have their `score`.

    Args:
        images: with their objects.
        names: of the labels.
        folder: to write to.

    Returns:
        The files that were written, from the folder on.
    """
    rows: list[dict[str, Any]] = []
    listed = []
    for image_id, image in enumerate(images):
        listed.append({"id": image_id, "file_name": image.file, "height": image.height, "width": image.width})
        for number, (box, label) in enumerate(_objects(image)):
            left, top, right, bottom = box
            sides = [round(right - left, DIGITS), round(bottom - top, DIGITS)]
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": label, "bbox": [left, top, *sides]}
            row |= {"area": sides[0] * sides[1], "iscrowd": int(image.is_crowd is not None and image.is_crowd[number])}
            rows.append(row | ({} if image.scores is None else {"score": float(image.scores[number])}))
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": listed, "annotations": rows, "categories": categories}
    with made_folder(Path(folder)):
        write_text(Path(folder) / "annotations.json", json.dumps(content, ensure_ascii=False) + "\n")
    return ["annotations.json"]


def write_yolo(images: Iterable[LabelledImage], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write `labels/`, a text file for each image, and `data.yaml`; images belong into `images/` beside them.

    Crowds are left out, and scores: a sixth number in a line means other things to other programs.

    Args:
        images: with their objects.
        names: of the labels.
        folder: to write to.

    Returns:
        The files that were written, from the folder on.
    """
    folder, written = Path(folder), ["data.yaml"]
    with made_folder(folder):
        for image in images:
            lines = []
            for number, ((left, top, right, bottom), label) in enumerate(_objects(image)):
                if image.is_crowd is None or not image.is_crowd[number]:
                    center = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
                    sides = (right - left) / image.width, (bottom - top) / image.height
                    lines.append(f"{label} {' '.join(f'{share:.{SHARES}f}' for share in (*center, *sides))}\n")
            name = PurePosixPath("labels", image.file).with_suffix(".txt").as_posix()
            _write(folder / name, "".join(lines))
            written.append(name)
        content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
        write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return written


def write_voc(images: Iterable[LabelledImage], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write `Annotations/`, an XML file for each image, in which pixels count from 1, as in the challenge.

    Crowds are marked as difficult. Scores are left out.

    Args:
        images: with their objects.
        names: of the labels.
        folder: to write to.

    Returns:
        The files that were written, from the folder on.
    """
    folder, written = Path(folder), []
    with made_folder(folder):
        for image in images:
            root = ElementTree.Element("annotation")
            _texts(root, filename=PurePosixPath(image.file).name)
            _texts(ElementTree.SubElement(root, "size"), width=image.width, height=image.height, depth=3)
            for number, ((left, top, right, bottom), label) in enumerate(_objects(image)):
                one = ElementTree.SubElement(root, "object")
                crowd = image.is_crowd is not None and image.is_crowd[number]
                _texts(one, name=names[label], difficult=int(crowd))
                corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
                told = {name: _plain(value) for name, value in corners.items()}
                _texts(ElementTree.SubElement(one, "bndbox"), **told)
            name = PurePosixPath("Annotations", image.file).with_suffix(".xml").as_posix()
            _write(folder / name, _xml(root))
            written.append(name)
    return written


def write_label_studio(images: Iterable[LabelledImage], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write `tasks.json` for Label Studio, with the objects as predictions that a labeller corrects, and `label.xml`.

    Images are looked for where the project's local files are (`LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`), by their names
    from the folder of the set on. `label.xml` is the labelling interface of the project.

    Args:
        images: with their objects.
        names: of the labels.
        folder: to write to.

    Returns:
        The files that were written, from the folder on.
    """
    tasks = []
    for image in images:
        results = []
        for number, ((left, top, right, bottom), label) in enumerate(_objects(image)):
            value = {
                "x": 100 * left / image.width,
                "y": 100 * top / image.height,
                "width": 100 * (right - left) / image.width,
                "height": 100 * (bottom - top) / image.height,
                "rotation": 0,
                "rectanglelabels": [names[label]],
            }
            result = {
                "id": f"object{number}",
                "type": "rectanglelabels",
                "from_name": LABEL_STUDIO_LABEL,
                "to_name": LABEL_STUDIO_IMAGE,
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "value": {key: round(one, SHARES) if isinstance(one, float) else one for key, one in value.items()},
            }
            results.append(result | ({} if image.scores is None else {"score": float(image.scores[number])}))
        prediction: dict[str, Any] = {"model_version": "tfdetr", "result": results}
        if image.scores is not None and len(image.scores):
            prediction["score"] = float(np.mean(image.scores))
        tasks.append(
            {"data": {"image": f"/data/local-files/?d={urllib.parse.quote(image.file)}"}, "predictions": [prediction]}
        )
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=LABEL_STUDIO_IMAGE, value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=LABEL_STUDIO_LABEL, toName=LABEL_STUDIO_IMAGE)
    for name in names:
        ElementTree.SubElement(labels, "Label", value=name)
    with made_folder(Path(folder)):
        write_text(Path(folder) / "tasks.json", json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
        write_text(Path(folder) / "label.xml", _xml(view))
    return ["tasks.json", "label.xml"]


def write_cvat(images: Iterable[LabelledImage], names: Sequence[str], folder: str | Path) -> list[str]:
    """Write `annotations.xml`, CVAT's own "for images 1.1", to be uploaded to a task that has these images.

    Scores are left out, and crowds are boxes.

    Args:
        images: with their objects.
        names: of the labels.
        folder: to write to.

    Returns:
        The files that were written, from the folder on.
    """
    root = ElementTree.Element("annotations")
    _texts(root, version="1.1")
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in names:
        _texts(ElementTree.SubElement(labels, "label"), name=name)
    for number, image in enumerate(images):
        told = {"id": number, "name": image.file, "width": image.width, "height": image.height}
        listed = ElementTree.SubElement(root, "image", {key: str(value) for key, value in told.items()})
        for (left, top, right, bottom), label in _objects(image):
            corners = {"xtl": left, "ytl": top, "xbr": right, "ybr": bottom}
            sides = {key: _plain(value) for key, value in corners.items()}
            source = "manual" if image.scores is None else "auto"
            entry = {"label": names[label], "occluded": "0", "source": source, **sides}
            ElementTree.SubElement(listed, "box", entry)
    with made_folder(Path(folder)):
        write_text(Path(folder) / "annotations.xml", _xml(root))
    return ["annotations.xml"]


WRITERS: Mapping[str, Callable[[Iterable[LabelledImage], Sequence[str], str | Path], list[str]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "label-studio": write_label_studio,
    "cvat": write_cvat,
}


def _objects(image: LabelledImage) -> list[tuple[tuple[float, float, float, float], int]]:
    """Return the box of each object, clipped to its image, and its label."""
    most = np.array([image.width, image.height] * 2, np.float64)
    boxes = np.clip(np.asarray(image.boxes, np.float64).reshape(-1, 4), 0, most).round(DIGITS)
    return [(tuple(box), int(label)) for box, label in zip(boxes.tolist(), image.labels, strict=True)]


def _plain(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def _texts(parent: ElementTree.Element, **texts: Any) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
