"""`preprocessor_config.json` of a checkpoint, read as a `Preprocessing` and written from one.

Every key is followed, known to change no pixel, or refused by its name: a model answers worse, and in silence, for
images that are not prepared as in its training. Where the file does not say a thing, transformers' default counts, and
for a checkpoint without the file what the authors of its architecture do.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from port_weights.families import family_of
from port_weights.hub import Commit
from tfdetr_keras.backend.whole_files import read_json
from tfdetr_keras.preprocessing import SIZE, Interpolation, Preprocessing, SizeRule

logger = logging.getLogger(__name__)

FILE = "preprocessor_config.json"
LONGEST = SIZE[1]  # of older files, which name a shortest edge alone
_FAMILY = ("Detr", "ConditionalDetr", "DeformableDetr", "TableTransformer", "Yolos", "RTDetr", "RfDetr")
_KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_TYPES = {f"{name}{kind}" for name in _FAMILY for kind in _KINDS}
_PLAIN = {f"RTDetr{kind}" for kind in _KINDS}  # those that normalise only where they are told to
_UNSMOOTHED = {f"RfDetr{kind}" for kind in _KINDS}  # that do not smooth images which become smaller
_RESAMPLING: dict[Interpolation, int] = {"bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling
# Keys of `size`, in the order of `Preprocessing.size`, and the rule that they stand for.
_SIZES: dict[tuple[str, str], SizeRule] = {
    ("shortest_edge", "longest_edge"): "huggingface",
    ("max_height", "max_width"): "fit",
    ("height", "width"): "stretch",
}
# Of rules that transformers does not have, the one that comes nearest; `RULE` keeps the name for this package.
_NEAREST: dict[SizeRule, SizeRule] = {"facebook": "huggingface", "table": "huggingface"}
RULE = "size_rule"  # this package's own key
_AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and deviation of levels that are not normalised
_TOLERANCE = 1e-4  # of means, deviations and factors, which are written with three to six digits
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


def read_processor(folder: Path, default: Preprocessing | None = None, with_size: bool = True) -> Preprocessing | None:
    """Read how a checkpoint's images are prepared.

    Args:
        folder: of the checkpoint.
        default: what counts where the file does not name a size; by default a published DETR's.
        with_size: whether its sizes are wanted; without, they may be of any form.

    Returns:
        None if the folder does not hold the file.

    Raises:
        ValueError: not JSON of an object, or a setting that the package does not follow; names the file, the key and
            its value.

    Source: `DetrImageProcessor` of transformers, and its predecessor `DetrFeatureExtractor`.
    """
    path = folder / FILE
    if not path.is_file():
        return None
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
    default = default or Preprocessing()
    # What sizes a network takes, no file of transformers tells.
    kind = told.get("image_processor_type")
    antialias = default.antialias if kind is None else kind not in _UNSMOOTHED
    levels = {"multiple_of": default.multiple_of, "antialias": antialias, **_levels(told)}
    if not with_size:
        return dataclasses.replace(default, **levels)
    size, rule = _size(path, told) or (default.size, default.rule)
    try:
        return Preprocessing(size, rule, _canvas(path, told), **levels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def preprocessing_of(source: Any, published: Preprocessing) -> Preprocessing:
    """Return how a checkpoint's images are prepared, as its folder tells.

    Without a file, images are prepared as the authors of the architecture do, which a line of the log says of a folder.
    What cannot be followed is logged: the weights are right, but what the model answers may not be.

    Args:
        source: of the checkpoint: a folder, or what `hub.fetch` made of a hub id; anything else tells nothing.
        published: as the authors of the architecture do.
    """
    folder = _folder_of(source)
    if folder is None:
        return published
    try:
        found = read_processor(folder, published)
    except ValueError as error:
        logger.warning("%s; images are prepared otherwise until model.preprocessing is set", error)
        found = _levels_alone(folder, published)
    else:
        if found is None:
            logger.info("%s has no %s, so images are prepared as its authors do: %s", folder, FILE, published)
    return found or published


def check_processor(source: Any, with_size: bool = True) -> None:
    """Raise a `ValueError` if a checkpoint's images are to be prepared in a way that the package does not follow.

    Args:
        source: as for `preprocessing_of`.
        with_size: whether its sizes matter.
    """
    if (folder := _folder_of(source)) is not None:
        read_processor(folder, with_size=with_size)


def processor_of(preprocessing: Preprocessing, config: Any) -> dict[str, Any]:
    """Return what `preprocessor_config.json` says of a preprocessing: all that transformers does to an image.

    Args:
        preprocessing: of the model.
        config: the model's architecture.

    Raises:
        ValueError: a canvas that is too small for images of that size, or where the model takes no padding.
    """
    family = family_of(config)
    if preprocessing.pad_to and not config.knows_padding:
        raise ValueError(f"pad_to={preprocessing.pad_to}, but a {family.member} takes no padding: leave pad_to out")
    has_edges = preprocessing.rule in ("huggingface", "facebook")
    if has_edges and preprocessing.pad_to and min(preprocessing.pad_to) < preprocessing.size[0]:
        raise ValueError(
            f"pad_to={preprocessing.pad_to} must be (height, width) in pixels, for images of size={preprocessing.size}"
        )
    rule = _NEAREST.get(preprocessing.rule, preprocessing.rule)
    first, second = next(keys for keys, its_rule in _SIZES.items() if its_rule == rule)
    size = preprocessing.size if preprocessing.rule != "table" else (preprocessing.size[1],) * 2
    plain = Preprocessing(antialias=family.image_processor not in _UNSMOOTHED)
    others = {
        key: getattr(preprocessing, key)
        for key in ("antialias", "multiple_of")
        if getattr(preprocessing, key) != getattr(plain, key)
    }
    if rule == "stretch" and not any(side % preprocessing.multiple_of for side in preprocessing.size):
        others.pop("multiple_of", None)  # there is nothing to round
    if others or preprocessing.rule == "facebook":
        named = [f"{key}={value}" for key, value in others.items()]
        named += [f"{RULE}={preprocessing.rule}"] if preprocessing.rule == "facebook" else []
        logger.warning("transformers does not know, and prepares images without, %s", ", ".join(named))
    is_normalized = (preprocessing.mean, preprocessing.std) != _AS_THEY_ARE
    canvas = preprocessing.pad_to and dict(zip(("height", "width"), preprocessing.pad_to, strict=True))
    return {
        "image_processor_type": family.image_processor,
        "format": "coco_detection",
        "do_resize": True,
        "size": {first: size[0], second: size[1]},
        "resample": _RESAMPLING[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale,
        "do_normalize": is_normalized,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_annotations": True,
        "do_pad": config.knows_padding,
        **({"pad_size": canvas} if canvas else {}),
        **({RULE: preprocessing.rule} if rule != preprocessing.rule else {}),
        **others,
    }


def _folder_of(source: Any) -> Path | None:
    """Return the folder whose files describe a checkpoint; None if there is none."""
    if isinstance(source, Commit):
        return source.folder
    return Path(source) if isinstance(source, str | Path) and Path(source).is_dir() else None


def _levels_alone(folder: Path, default: Preprocessing) -> Preprocessing | None:
    """Return what can be followed of a file whose sizes cannot; None where nothing can."""
    try:
        return read_processor(folder, default, with_size=False)
    except ValueError:
        return None


def _levels(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Preprocessing` beside the sizes, as far as the file tells them."""
    fields: dict[str, Any] = {}
    if told.get("do_rescale") is False:
        fields["rescale"] = 1.0
    elif told.get("rescale_factor") is not None:
        factor = told["rescale_factor"]
        fields["rescale"] = 1 / 255 if math.isclose(factor, 1 / 255, rel_tol=_TOLERANCE) else factor
    is_plain = told.get("do_normalize") is None and told.get("image_processor_type") in _PLAIN
    if told.get("do_normalize") is False or is_plain:
        fields |= dict(zip(("mean", "std"), _AS_THEY_ARE, strict=True))
    else:
        for name in ("mean", "std"):
            if (values := told.get(f"image_{name}")) is not None:
                values = values if isinstance(values, list) else [values] * 3
                usual = getattr(Preprocessing(), name)
                is_usual = all(abs(one - other) <= _TOLERANCE for one, other in zip(values, usual, strict=True))
                fields[name] = usual if is_usual else tuple(values)
    if (resample := told.get("resample")) is not None:
        fields["interpolation"] = _interpolation(resample)
    for name in ("antialias", "multiple_of"):
        if told.get(name) is not None:
            fields[name] = told[name]
    return fields


def _interpolation(resample: Any) -> Interpolation | None:
    """Return the interpolation that a number or a name of Pillow's stands for; None for others."""
    if isinstance(resample, str):
        return next((name for name in _RESAMPLING if name == resample.lower()), None)
    if isinstance(resample, bool) or not isinstance(resample, int):
        return None
    return next((name for name, number in _RESAMPLING.items() if number == resample), None)


def _is_ours(value: Any) -> bool:
    return isinstance(value, str) and value in _TYPES


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)))


def _are_positive(value: Any) -> bool:
    return _are_numbers(value) and min(value if isinstance(value, list) else [value]) > 0


_COLOURS = "which is no number, nor three of them for red, green and blue"
# Key -> (whether a value is followed, what it is otherwise). A value of null is the processor's default.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_processor_type": (_is_ours, "but images are prepared as DetrImageProcessor does"),
    "feature_extractor_type": (_is_ours, "but images are prepared as DetrFeatureExtractor does"),
    "do_resize": (lambda value: value is True, "but images are always resized"),
    "do_rescale": (_is_flag, "not true or false"),
    "rescale_factor": (lambda value: _is_number(value) and value > 0, "which is no number above 0"),
    "do_normalize": (_is_flag, "not true or false"),
    "image_mean": (_are_numbers, _COLOURS),
    "image_std": (_are_positive, f"{_COLOURS}, above 0"),
    "resample": (
        lambda value: _interpolation(value) is not None,
        "but images are resized bilinearly (2) or bicubically (3)",
    ),
    "do_center_crop": (lambda value: value is False, "but images are not cropped"),
    "size_divisor": (lambda value: value in (0, 1), "but images are not padded to multiples"),
    "size_divisibility": (lambda value: value in (0, 1), "but images are not padded to multiples"),
    "antialias": (_is_flag, "not true or false"),
    "multiple_of": (_is_side, "which is no whole number above 0"),
    RULE: (lambda value: value in get_args(SizeRule), f"but the rules are {', '.join(get_args(SizeRule))}"),
    "auto_map": (lambda value: not value, "a processor of its own, which is not run"),
    "do_pad": (_is_flag, "not true or false"),
    "pad_size": (lambda value: True, ""),
    "size": (lambda value: True, ""),
}
# What is not looked at where a flag is false.
_OF_FLAG = {"image_mean": "do_normalize", "image_std": "do_normalize", "rescale_factor": "do_rescale"}


def _complaint(key: str, value: Any, told: Mapping[str, Any]) -> str:
    if key not in _CHECKS or value is None or told.get(_OF_FLAG.get(key, "")) is False:
        return ""
    is_followed, otherwise = _CHECKS[key]
    return "" if is_followed(value) else otherwise


def _canvas(path: Path, told: Mapping[str, Any]) -> tuple[int, int] | None:
    canvas = told.get("pad_size")
    if canvas is None or told.get("do_pad") is False:
        return None
    if not isinstance(canvas, dict) or set(canvas) != {"height", "width"} or not all(map(_is_side, canvas.values())):
        raise ValueError(
            f'{path} says "pad_size": {json.dumps(canvas)}, which is no height and width: give --size, --pad-to'
        )
    return canvas["height"], canvas["width"]


def _size(path: Path, told: Mapping[str, Any]) -> tuple[tuple[int, int], SizeRule] | None:
    """Return the size and the rule of a preprocessing; None where the file names no size."""
    size = told.get("size")
    if size is None:
        return None
    if _is_side(size) and not told.get("default_to_square"):  # older files
        longest = told.get("max_size")
        size = {"shortest_edge": size, "longest_edge": LONGEST if longest is None else longest}
    if isinstance(size, dict) and size and all(map(_is_side, size.values())):
        if set(size) == {"longest_edge"}:  # Table Transformer's, which transformers itself refuses
            return (size["longest_edge"],) * 2, "table"
        for keys, rule in _SIZES.items():
            if set(size) == set(keys):
                return (size[keys[0]], size[keys[1]]), told.get(RULE) or rule
    forms = ", ".join(" and ".join(keys) for keys in _SIZES)
    raise ValueError(
        f'{path} says "size": {json.dumps(told["size"])}, but it must be whole numbers of pixels as {forms}, or '
        "longest_edge alone: give --size, and --size-rule, as the model was trained"
    )
