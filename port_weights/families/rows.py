"""Rows of what many networks are made of: layers, and how PyTorch's libraries name their tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from port_weights.layouts import CONV, DENSE, HEADS_BIAS, HEADS_IN, HEADS_OUT, VECTOR, packed
from port_weights.tables import Buffer, Row


def affine(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of a normalisation's scale and shift."""
    return [
        (f"{torch_name}.weight", f"{keras_path}/gamma", VECTOR),
        (f"{torch_name}.bias", f"{keras_path}/beta", VECTOR),
    ]


def norm(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of batch normalisation."""
    return [
        *affine(torch_name, keras_path),
        (f"{torch_name}.running_mean", f"{keras_path}/moving_mean", VECTOR),
        (f"{torch_name}.running_var", f"{keras_path}/moving_variance", VECTOR),
    ]


def conv_norm(convolution: str, normalization: str, keras_path: str) -> list[Row]:
    """Return rows of a convolution with batch normalisation."""
    return [
        (f"{convolution}.weight", f"{keras_path}/convolution/kernel", CONV),
        *norm(normalization, f"{keras_path}/normalization"),
    ]


def linear(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of a dense layer."""
    return [
        (f"{torch_name}.weight", f"{keras_path}/kernel", DENSE),
        (f"{torch_name}.bias", f"{keras_path}/bias", VECTOR),
    ]


def conv(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of a convolution with a bias."""
    return [
        (f"{torch_name}.weight", f"{keras_path}/kernel", CONV),
        (f"{torch_name}.bias", f"{keras_path}/bias", VECTOR),
    ]


def output_projection(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of attention's output projection."""
    return [
        (f"{torch_name}.weight", f"{keras_path}/attention_output/kernel", HEADS_OUT),
        (f"{torch_name}.bias", f"{keras_path}/attention_output/bias", VECTOR),
    ]


def split_attention(torch_name: str, keras_path: str, output: str) -> list[Row]:
    """Return rows of attention with query, key and value as layers of their own (Hugging Face)."""
    names = {f"{torch_name}.{role[0]}_proj": role for role in ("query", "key", "value")}
    return output_projection(f"{torch_name}.{output}", keras_path) + split_projections(names, keras_path)


def split_projections(names: dict[str, str], keras_path: str) -> list[Row]:
    """Return rows of attention's projections that are layers of their own: PyTorch name → role."""
    rows = []
    for torch_name, role in names.items():
        rows.append((f"{torch_name}.weight", f"{keras_path}/{role}/kernel", HEADS_IN))
        rows.append((f"{torch_name}.bias", f"{keras_path}/{role}/bias", HEADS_BIAS))
    return rows


def deformable_attention(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of deformable attention, which all name alike."""
    names = {
        "sampling_offsets": "sampling_offsets",
        "attention_weights": "attention_weights",
        "value_proj": "value_projection",
        "output_proj": "output_projection",
    }
    return [row for theirs, ours in names.items() for row in linear(f"{torch_name}.{theirs}", f"{keras_path}/{ours}")]


def packed_attention(torch_name: str, keras_path: str) -> list[Row]:
    """Return rows of attention as `torch.nn.MultiheadAttention` keeps it (facebookresearch)."""
    rows = output_projection(f"{torch_name}.out_proj", keras_path)
    for part, role in enumerate(("query", "key", "value")):
        rows.append((f"{torch_name}.in_proj_weight", f"{keras_path}/{role}/kernel", packed(HEADS_IN, part)))
        rows.append((f"{torch_name}.in_proj_bias", f"{keras_path}/{role}/bias", packed(HEADS_BIAS, part)))
    return rows


def group_norm_conv(convolution: str, normalization: str, keras_path: str) -> list[Row]:
    """Return rows of a convolution with normalisation in groups."""
    return [
        *conv(convolution, f"{keras_path}/convolution"),
        *affine(normalization, f"{keras_path}/group_norm"),
    ]


def batch_counters(rows: Iterable[Row]) -> list[Buffer]:
    """Return what PyTorch's batch normalisation counts, beside the means of these rows: no batches in a new file."""
    mean = ".running_mean"
    return [
        (f"{name.removesuffix(mean)}.num_batches_tracked", path, _no_batches)
        for name, path, _ in rows
        if name.endswith(mean)
    ]


def _no_batches(config: Any) -> np.ndarray:
    return np.zeros((), np.int64)
