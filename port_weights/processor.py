"""What a checkpoint's `preprocessor_config.json` says of its images, as far as this package prepares images so.

The package resizes to a shortest and a longest edge, bilinearly, and normalises with ImageNet's mean and deviation. A
file that says otherwise is refused by the name of the setting: a model answers worse, and in silence, for images that
are not prepared as in its training. Settings that change no pixel may be anything.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdetr_keras.imagenet import IMAGENET_MEAN, IMAGENET_STD
from tfdetr_keras.models.whole_files import read_json

logger = logging.getLogger(__name__)

FILE = "preprocessor_config.json"
LONGEST = 1333  # of older files, which name a shortest edge alone
_FAMILY = ("Detr", "ConditionalDetr", "DeformableDetr", "TableTransformer", "Yolos")
_TYPES = {f"{name}{kind}" for name in _FAMILY for kind in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor")}
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR
_TOLERANCE = 1e-4  # of means and deviations, which are written with three to six digits
# What changes no pixel, or is done always: annotations, channels' order of what comes out, names, and sizes that `size`
# or `do_center_crop` make use of.
_WITHOUT_EFFECT = {
    "format",
    "do_convert_annotations",
    "do_convert_rgb",
    "return_segmentation_masks",
    "annotations",
    "masks_path",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "default_to_square",
    "processor_class",
    "_valid_processor_keys",
    "crop_size",
    "max_size",
    "pad_and_return_pixel_mask",
    "do_reduce_labels",
    "reduce_labels",
    "num_labels",
    "ignore_index",
    "transformers_version",
    "_commit_hash",
    "_name_or_path",
    "image_seq_length",
}


def read_processor(folder: Path, with_size: bool = True) -> dict[str, Any]:
    """Reads the sizes that images are resized and padded to, and refuses what the package would do otherwise.

    Args:
        folder: of a checkpoint.
        with_size: whether its sizes are wanted; without, they may be of any form.

    Returns:
        `{"size": (shortest edge, longest edge), "pad_to": (height, width)}`, pixels, as far as the file says them.

    Raises:
        ValueError: not JSON of an object, or a setting that the package does not follow; names the file, the key and
            its value.

    Source: `DetrImageProcessor` of transformers, and its predecessor `DetrFeatureExtractor`.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    told = read_json(path)
    for key, value in told.items():
        if complaint := _complaint(key, value, told):
            raise ValueError(
                f'{path} says "{key}": {json.dumps(value)}, {complaint}; take the key out of the file only if the '
                "model was not trained so"
            )
    known = _CHECKS.keys() | _WITHOUT_EFFECT
    unknown = [key for key, value in told.items() if key not in known and value is not None and value is not False]
    if unknown:
        named = ", ".join(f'"{key}": {json.dumps(told[key])}' for key in unknown)
        logger.warning("%s has settings that are not known here, and are not followed: %s", path, named)
    if not with_size:
        return {}
    canvas = _canvas(path, told)
    size = _size(path, told)
    return ({"size": size} if size else {}) | ({"pad_to": canvas} if canvas else {})


def tell_processor(source: Any) -> None:
    """Logs what `read_processor` would refuse of a checkpoint's folder: its weights are right, `detect` is not."""
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        try:
            read_processor(Path(source), with_size=False)
        except ValueError as error:
            logger.warning("%s", error)


def _is_ours(value: Any) -> bool:
    return isinstance(value, str) and value in _TYPES


def _is_true(value: Any) -> bool:
    return value is None or value is True


def _is_ratio(value: Any, wanted: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isclose(value, wanted, rel_tol=1e-4)


def _are(values: Any, wanted: tuple[float, ...]) -> bool:
    if not isinstance(values, list) or len(values) != len(wanted):
        return False
    pairs = zip(values, wanted, strict=True)
    return all(isinstance(one, (int, float)) and abs(one - other) <= _TOLERANCE for one, other in pairs)


# Key -> (whether a value is what the package does, what it does). A value of null is the processor's default.
_CHECKS: dict[str, tuple[Any, str]] = {
    "image_processor_type": (
        _is_ours,
        "but images are prepared as DetrImageProcessor does",
    ),
    "feature_extractor_type": (
        _is_ours,
        "but images are prepared as DetrFeatureExtractor does",
    ),
    "do_resize": (_is_true, "but images are always resized"),
    "do_rescale": (_is_true, "but levels are always divided by 255"),
    "rescale_factor": (lambda value: _is_ratio(value, 1 / 255), "but levels are always divided by 255"),
    "do_normalize": (_is_true, "but images are always normalised"),
    "image_mean": (lambda value: _are(value, IMAGENET_MEAN), f"but images are normalised with {list(IMAGENET_MEAN)}"),
    "image_std": (lambda value: _are(value, IMAGENET_STD), f"but images are normalised with {list(IMAGENET_STD)}"),
    "resample": (
        lambda value: value in (_BILINEAR, "bilinear", "BILINEAR") and not isinstance(value, bool),
        "but images are resized bilinearly (2)",
    ),
    "do_center_crop": (lambda value: value is False, "but images are not cropped"),
    "size_divisor": (lambda value: value in (0, 1), "but images are not padded to multiples"),
    "size_divisibility": (lambda value: value in (0, 1), "but images are not padded to multiples"),
    "antialias": (_is_true, "but images are resized with antialiasing"),
    "auto_map": (lambda value: not value, "a processor of its own, which is not run"),
    "do_pad": (lambda value: isinstance(value, bool), "not true or false"),
    "pad_size": (lambda value: True, ""),
    "size": (lambda value: True, ""),
}


def _complaint(key: str, value: Any, told: Mapping[str, Any]) -> str:
    if key not in _CHECKS or value is None:
        return ""
    is_done, otherwise = _CHECKS[key]
    if key.startswith("image_") and told.get("do_normalize") is False:
        return ""  # which is refused itself
    return "" if is_done(value) else otherwise


def _canvas(path: Path, told: Mapping[str, Any]) -> tuple[int, int] | None:
    canvas = told.get("pad_size")
    if canvas is None or told.get("do_pad") is False:
        return None
    if not isinstance(canvas, dict) or set(canvas) != {"height", "width"} or not all(map(_is_side, canvas.values())):
        raise ValueError(
            f'{path} says "pad_size": {json.dumps(canvas)}, which is no height and width: give --size, --pad-to'
        )
    return canvas["height"], canvas["width"]


def _size(path: Path, told: Mapping[str, Any]) -> tuple[int, int] | None:
    size = told.get("size")
    if size is None:
        return None
    if _is_side(size) and not told.get("default_to_square"):  # older files
        longest = told.get("max_size")
        size = {"shortest_edge": size, "longest_edge": LONGEST if longest is None else longest}
    if isinstance(size, dict) and set(size) == {"shortest_edge", "longest_edge"} and all(map(_is_side, size.values())):
        return size["shortest_edge"], size["longest_edge"]
    raise ValueError(
        f'{path} says "size": {json.dumps(told["size"])}, but images are resized to a shortest_edge and longest_edge, '
        "and keep their shape: give --size SHORT LONG if the model was trained on such images" + _hint(size)
    )


def _hint(size: Any) -> str:
    if isinstance(size, dict) and set(size) == {"longest_edge"} and _is_side(edge := size["longest_edge"]):
        return f", here --size {edge} {edge} --size-rule table"
    return ""


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
