"""The PyTorch model that a checkpoint belongs to, which runs in a process of its own: the other side of `compare`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from port_weights import hub
from port_weights.architecture import hugging_face_config
from port_weights.exports import to_torch
from port_weights.families import family_of
from port_weights.pytorch import BATCH, STAGES, TENSORS
from port_weights.pytorch.process import run
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import Detector


def reference_stages(
    source: Any, model: Detector, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], str]:
    """Run the PyTorch model with a checkpoint's weights, in a process of its own.

    Args:
        source: what `model` was ported from.
        model: the Keras model.
        batch: `pixel_values` (batch, height, width, 3) float32 and `pixel_mask` (batch, height, width).

    Returns:
        The stages under the names of `DETR.stages`, and how the PyTorch model got its weights. A Hugging Face folder
        that transformers can read by itself is read by it; other checkpoints go through this package's tables, read
        backwards.

    Raises:
        ValueError: torch or transformers is missing (`PyTorchMissingError`), or their process failed.
    """
    from safetensors.numpy import load_file, save_file

    checkpoint = _readable_folder(source, model.config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file({name: np.ascontiguousarray(array) for name, array in batch.items()}, folder / BATCH)
        if checkpoint is None:
            arrays = to_torch(model, family_of(model.config).reference_scheme(model.config))
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / TENSORS)
        config = hugging_face_config(model.config)
        names = run("port_weights.pytorch.model:write_stages", folder, config=config, checkpoint=checkpoint)
        arrays = load_file(folder / STAGES)
    origin = "written from the ported model through the name tables"
    return {name: arrays[name] for name in names}, origin if checkpoint is None else "read by transformers itself"


def _readable_folder(source: Any, config: DetectorConfig) -> str | None:
    """Return the folder of a checkpoint, if transformers reads it without the package timm."""
    from safetensors import safe_open

    if isinstance(source, hub.Commit):
        source = source.folder
    if not isinstance(source, (str, os.PathLike)) or getattr(config.backbone, "dilation", False):
        return None
    weights = Path(source) / "model.safetensors"
    if not weights.is_file():
        return None
    with safe_open(os.fspath(weights), framework="numpy") as file:
        # Of its own ResNets, HGNetV2, or vision transformers.
        own = ("embedder.embedder.", "embedder.stem1.", ".embeddings.")
        readable = any(part in name for name in file.keys() for part in own)  # noqa: SIM118
    return os.fspath(Path(source).resolve()) if readable else None


def write_random_checkpoint(folder: Path, config: DetectorConfig, seed: int = 0) -> None:
    """Write a Hugging Face folder (`config.json`, `model.safetensors`) with random weights, to practise porting on.

    Raises:
        ValueError: torch or transformers is missing (`PyTorchMissingError`), or their process failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run(
            "port_weights.pytorch.model:write_random_model",
            Path(temporary),
            target=os.fspath(folder.resolve()),
            config=hugging_face_config(config),
            seed=seed,
        )
