"""Names as training programs wrap them: what stands before a model's own names, or around them, is taken off.

`module.` is of DistributedDataParallel and DataParallel, `_orig_mod.` of torch.compile, and a prefix such as `model.`
of a LightningModule or another module that holds the detector, its loss and its measures.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping

from port_weights.checkpoints import Checkpoint
from port_weights.families import landmarks
from port_weights.families.detr import DETECTOR_OF_SEGMENTATION, HUGGING_FACE_MODEL
from port_weights.families.rf_detr_segmentation import BIAS_OF_MASKS

logger = logging.getLogger(__name__)

_WRAPPERS = ("module", "_orig_mod")
_ADAPTER = re.compile(r"(^|\.)(lora_\w+|base_layer|base_model\.model)\.")  # names of the package peft
_AVERAGED = re.compile(r"(^|[._-])(ema|swa|avg|averaged?|shadow|teacher)([._-]|$)", re.IGNORECASE)


def unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint under the model's own names.

    Raises:
        ValueError: it holds several models, or adapters beside its weights; or two tensors would have one name.
    """
    if adapters := [name for name in checkpoint.shapes if _ADAPTER.search(name)]:
        raise ValueError(
            f"{checkpoint.name} holds a model as peft wraps it to train LoRA adapters ({len(adapters)} tensors, for "
            f"example {adapters[0]}): merge them where they were trained (merge_and_unload), save that and load it"
        )
    originals: dict[str, str] = {}
    for name in checkpoint.shapes:
        own = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if own in originals:
            raise ValueError(
                f"{checkpoint.name} holds both {originals[own]} and {name}, which are one tensor of a model: save the "
                "weights of one model alone"
            )
        originals[own] = name
    prefix = _prefix(checkpoint.name, originals)
    beside = [name for name in originals if not name.startswith(prefix)]
    if beside:
        logger.warning(
            "%s: left out what stands beside the model %s: %s%s",
            checkpoint.name,
            prefix.rstrip("."),
            ", ".join(beside[:5]),
            f" and {len(beside) - 5} more" if len(beside) > 5 else "",
        )
    names = {own.removeprefix(prefix): name for own, name in originals.items() if own.startswith(prefix)}
    if all(own == name for own, name in names.items()):
        return checkpoint
    return dataclasses.replace(
        checkpoint,
        shapes={own: checkpoint.shapes[name] for own, name in names.items()},
        read=lambda own: checkpoint.read(names[own]),
    )


def _prefix(title: str, names: dict[str, str]) -> str:
    """Return what a training program put before all names of the detector."""
    found = dict.fromkeys(
        _outer(name.removesuffix(landmark), transformer, names)
        for name in names
        for transformer, landmark in landmarks()
        if name.endswith(landmark) and _is_whole_part(name, landmark)
    )
    plain = [prefix for prefix in found if not _AVERAGED.search(prefix)] or list(found)
    if len(plain) > 1:
        raise ValueError(
            f"{title} holds several models, under {', '.join(map(repr, plain))}: save the weights of one of them alone"
        )
    if len(plain) < len(found):
        logger.warning("%s: an average of the weights stands beside them, and is left out", title)
    return plain[0] if plain else ""


def _is_whole_part(name: str, landmark: str) -> bool:
    """Whether a name is a landmark behind a prefix of whole parts, and not a longer landmark's end."""
    before = name.removesuffix(landmark)
    return (not before or before.endswith(".")) and not before.endswith("transformer.")


def _outer(before: str, transformer: str, names: Mapping[str, str]) -> str:
    if "hugging-face" in transformer:
        before = before.removesuffix(HUGGING_FACE_MODEL)
        around = before.removesuffix(HUGGING_FACE_MODEL)
        if f"{around}{BIAS_OF_MASKS}" in names:  # RF-DETR's masks, whose model holds the detector
            before = around
    return before.removesuffix(DETECTOR_OF_SEGMENTATION)
