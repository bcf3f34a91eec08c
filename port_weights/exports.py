"""Exporting: a Keras DETR as the files that transformers or facebookresearch's code reads; porting, the other way.

The weights are those of the model, bit for bit, under the names of `port_weights.names`; the moving statistics of
ordinary batch normalisation become frozen ones. What the files have no place for is refused where the outputs would
differ, and logged where only further training would.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from port_weights.families import family_of
from port_weights.families.resnet import Backbone
from port_weights.processor import FILE, processor_of
from port_weights.pytorch import TENSORS
from port_weights.pytorch.process import PyTorchMissingError, require, run
from port_weights.tables import IGNORED, Scheme
from tfdetr_keras.backend.atomic import check_new_file, check_new_folder, whole_file, whole_folder
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.pretrained import load_model
from tfdetr_keras.models.quantization import mode_of
from tfdetr_keras.models.registry import model_class
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

logger = logging.getLogger(__name__)

FILES = ("config.json", FILE, "model.safetensors")
PICKLES = (".pth", ".pt", ".bin")


def export(
    source: Any,
    folder: str | os.PathLike[str],
    backbone: Backbone = "hugging-face",
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> Detector:
    """Write the folder from which transformers loads a model and its image processor; needs neither it nor torch.

    The folder holds `config.json`, `preprocessor_config.json` and `model.safetensors`, all or none. It is read by
    `transformers.AutoModelForObjectDetection` and `AutoImageProcessor` (as `DetrForObjectDetection`, as
    `TableTransformerForObjectDetection`, `ConditionalDetrForObjectDetection`, `DabDetrForObjectDetection`,
    `RTDetrForObjectDetection`, `RTDetrV2ForObjectDetection`, `DFineForObjectDetection`, `LwDetrForObjectDetection`,
    `RfDetrForObjectDetection`), or by `DetrForSegmentation`, and by `load_model`. It keeps the weights, in float32, the
    architecture, the names of the classes and the loss; not which parts are frozen.

    Args:
        source: a model, or a checkpoint as for `load_model`.
        folder: where to write; its parent must exist.
        backbone: under whose names the backbone is written. `"hugging-face"`: transformers alone reads it; any ResNet
            without dilation. `"timm"`: transformers reads it where the package timm is installed; ResNet-18, -34, -50
            and -101, with dilation (DC5) or without.
        size: to which the image processor resizes, in place of that of the preprocessing, see `td.Preprocessing`.
        overwrite: whether an earlier export in the folder is replaced.
        pad_to: (height, width) of the canvas to which it pads, pixels, in place of that of the preprocessing.
        size_rule: by which it resizes, in place of that of the preprocessing.
        preprocessing: what the image processor does; by default the model's own.
        **options: of `load_model`, for a checkpoint.

    Returns:
        The model that was written.

    Raises:
        ValueError: as `load_model`; or the folder's parent does not exist; the folder holds an earlier export and
            `overwrite` is false, or it holds anything else; a size or a canvas that is none; the model's backbone has
            no description in these names, or its activation another meaning in transformers; weights that are not
            finite.
    """
    target = Path(folder).resolve()
    if target.suffix in (*PICKLES, ".safetensors", ".keras"):
        raise ValueError(f"{folder}: a folder is written here, but that is the name of a file; see export_pth for .pth")
    check_new_folder(target, FILES, overwrite)
    if backbone not in get_args(Backbone):
        raise ValueError(f"backbone={backbone!r} must be one of {', '.join(map(repr, get_args(Backbone)))}")
    preprocessing_for(None, preprocessing, size, pad_to, size_rule)  # what cannot be is refused before much is read
    model, name = _model(source, options)
    processor = processor_of(preprocessing_for(model, preprocessing, size, pad_to, size_rule), model.config)
    family = family_of(model.config)
    _refuse(name, family.refuse_for_transformers, model.config, backbone)
    config, names = family.hugging_face_config(model.config, model.criterion, backbone), family.hugging_face_scheme
    arrays = _arrays(model, names(model.config, backbone), name)
    told: dict[str, Any] = dict(family.coefficients_of(config))
    arriving = dataclasses.replace(model_class(model.config).default_criterion(), **told)
    _report_loss(model.criterion, arriving, name)
    if getattr(model.config, "position_embedding", "sine") == "learned" and family.model_types == ("detr",):
        logger.warning("%s: learned positions are written as transformers 5 names them; 4 will not find them", name)

    from safetensors.numpy import save_file

    with whole_folder(target) as written:
        _write_json(written / "config.json", config)
        _write_json(written / FILE, processor)
        save_file(arrays, written / "model.safetensors", metadata={"format": "pt"})  # transformers insists on it
        # safetensors lets its file be read by nobody else.
        (written / "model.safetensors").chmod((written / "config.json").stat().st_mode)
        # Once more: porting takes a while, and what came there would be lost.
        check_new_folder(target, FILES, overwrite)
    return model


def export_pth(source: Any, path: str | os.PathLike[str], overwrite: bool = False, **options: Any) -> Detector:
    """Write a checkpoint as facebookresearch/detr has it: `{"model": state dict, "args": …}`. Needs the port extra.

    Of a Conditional DETR, as Atten4Vis/ConditionalDETR has it; of a DAB-DETR, as IDEA-Research/DAB-DETR; of an RT-DETR
    or RT-DETRv2, as lyuwenyu/RT-DETR's first or second code; of a D-FINE, as Peterande/D-FINE; of an LW-DETR, as
    Atten4Vis/LW-DETR; of an RF-DETR, as roboflow/rf-detr.

    `args` holds the architecture and the loss under the names of its training script, or of its YAML files, so that
    `load_model` needs to be told nothing; the names of the classes have no place there but in RF-DETR's.

    Args:
        source: a model, or a checkpoint as for `load_model`.
        path: the file to write, `.pth` (or `.pt`, `.bin`), which appears complete or not at all.
        overwrite: whether an existing file is replaced.
        **options: of `load_model`, for a checkpoint.

    Returns:
        The model that was written.

    Raises:
        ValueError: as `load_model`; or the path's folder does not exist, the file does and `overwrite` is false, or its
            name ends otherwise; the encoder and the decoder have other heads or feed-forward widths, or the activation
            is not ReLU, which that code has no settings for; weights that are not finite; torch is not installed, or
            its process failed.
        OSError: the file cannot be written.
    """
    target = Path(path).resolve()
    if target.suffix not in PICKLES:
        raise ValueError(f"{path}: the file to write must end in {', '.join(PICKLES)}")
    check_new_file(target, overwrite)
    missing = f"only torch can write {path}: pip install 'tfdetr-keras[port]'"
    try:
        require("torch")
    except PyTorchMissingError as error:
        raise ValueError(f"{missing} ({error})") from error
    model, name = _model(source, options)
    family = family_of(model.config)
    _refuse(name, family.refuse_for_authors, model.config)
    arrays = _arrays(model, family.authors_scheme(model.config), name)
    arguments = family.authors_arguments(model.config, model.criterion)
    if family.is_unknown_to_torchvision(model.config):
        logger.warning(
            "%s: load_model reads this backbone from the .pth, but %s has none like it",
            name,
            family.backbones_of_authors,
        )
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as temporary, whole_file(target) as written:
        save_file(arrays, Path(temporary, TENSORS))
        try:
            run("port_weights.pytorch.pickles:write", Path(temporary), path=os.fspath(written), arguments=arguments)
        except PyTorchMissingError as error:
            raise ValueError(f"{missing} ({error})") from error
        check_new_file(target, overwrite)
    return model


def to_torch(model: Detector, scheme: Scheme) -> dict[str, np.ndarray]:
    """Return a model's weights under their PyTorch names: the tables read backwards.

    Args:
        model: the Keras model.
        scheme: the naming scheme to write.

    Returns:
        PyTorch name → array in PyTorch's layout, and what PyTorch's code keeps beside the weights.

    Raises:
        ValueError: the model is quantised, or has a weight that the scheme has no name for.
    """
    refuse_quantized(model, "the model")
    parts: dict[str, list[np.ndarray]] = {}
    buffers: dict[str, np.ndarray] = {}
    for path, variable in ((variable.path.split("/", 1)[1], variable) for variable in model.weights):
        named = scheme.torch_name(path)
        if named is None:
            raise ValueError(f"the scheme {scheme.title!r} has no name for {path}")
        name, layout = named
        pieces = parts.setdefault(name, [np.empty(0)] * layout.parts)
        pieces[layout.part] = layout.to_torch(np.asarray(variable))
        buffers |= {name: content(model.config) for name, content in scheme.buffers_beside(path)}
    arrays = {name: np.concatenate(pieces) if len(pieces) > 1 else pieces[0].copy() for name, pieces in parts.items()}
    for name, copies in scheme.copies.items():
        arrays |= {copy: arrays[name].copy() for copy in copies if copy not in arrays}
    return arrays | buffers


def refuse_quantized(model: Detector, name: str) -> None:
    """Raise a `ValueError` if a model that is to be ported is quantised."""
    if mode := mode_of(model):
        raise ValueError(f"{name} is quantised ({mode}), which no PyTorch DETR is: port the original")


def _model(source: Any, options: Mapping[str, Any]) -> tuple[Detector, str]:
    """Return the model to export, and what to call it in messages."""
    if isinstance(source, Detector):
        if options:
            raise ValueError(f"{', '.join(options)}: for a checkpoint that is yet to be read, and this is a model")
        model, name = source, f"the model {source.name!r}"
    else:
        name = str(source) if isinstance(source, (str, os.PathLike)) else "the checkpoint"
        model = load_model(source, **options)
    refuse_quantized(model, name)
    if model.config.backbone.batch_norm == "folded":
        raise ValueError(f"{name}: its batch normalisation is folded, which no PyTorch DETR has: export the original")
    return model, name


def _refuse(name: str, refuse: Callable[..., None], *arguments: Any) -> None:
    """Put the name of the model before what its record has against writing it."""
    try:
        refuse(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _arrays(model: Detector, names: Scheme, name: str) -> dict[str, np.ndarray]:
    """Return the model's weights under their PyTorch names, float32, and the buffers beside them as they are."""
    arrays = {key: _in_order(array) for key, array in to_torch(model, names).items()}
    broken = [key for key, array in arrays.items() if not IGNORED.fullmatch(key) and not np.isfinite(array).all()]
    if broken:
        raise ValueError(
            f"{name}: {len(broken)} of its weights are not finite, as after a training that diverged: "
            + ", ".join(sorted(broken)[:5])
        )
    return arrays


def _in_order(array: np.ndarray) -> np.ndarray:
    """Return an array in C order, of as many axes; weights in float32."""
    is_weight = array.dtype.kind not in "bi"
    return np.asarray(array, np.float32 if is_weight else None, order="C")


def _report_loss(ours: SetCriterion, theirs: SetCriterion, name: str) -> None:
    lost = [
        f"{field.name}={getattr(ours, field.name)}"
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if lost:
        logger.warning("%s: transformers cannot be told of, and would train without, %s", name, ", ".join(lost))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
