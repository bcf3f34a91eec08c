"""Weights between PyTorch checkpoints and Keras models: read once, without torch unless the file is a pickle."""

from port_weights.export import export, export_pth
from port_weights.port import convert, load_model, to_torch

__all__ = ["convert", "export", "export_pth", "load_model", "to_torch"]
