"""Data: one record format, readers that yield it, and the batches that a model takes."""

from tfdetr_keras.data.batching import prepare
from tfdetr_keras.data.checks import checked_dataset, readable_errors
from tfdetr_keras.data.coco import load_coco
from tfdetr_keras.data.shapes import SHAPES, load_shapes

__all__ = ["SHAPES", "checked_dataset", "load_coco", "load_shapes", "prepare", "readable_errors"]
