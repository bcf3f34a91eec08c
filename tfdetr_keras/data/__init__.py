"""Data: one record format, readers that yield it, and the batches that a model takes."""

import keras  # noqa: F401 - before TensorFlow: with PyTorch as its backend it imports triton, which must come first

from tfdetr_keras.data.checks import checked_dataset, readable_errors
from tfdetr_keras.data.coco import coco_category_ids, load_coco
from tfdetr_keras.data.coco_panoptic import coco_things, load_coco_panoptic
from tfdetr_keras.data.image_files import load_images
from tfdetr_keras.data.multiscale import MULTISCALE
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.data.shapes import SHAPES, load_shapes
from tfdetr_keras.data.split import split
from tfdetr_keras.data.summary import summarize
from tfdetr_keras.data.tensors import from_dataset
from tfdetr_keras.data.tfds import load_tfds
from tfdetr_keras.data.tfrecord import load_tfrecord, write_tfrecord
from tfdetr_keras.data.tiles import Tiles, cut_tiles
from tfdetr_keras.data.voc import load_voc
from tfdetr_keras.data.yolo import load_yolo

__all__ = [
    "MULTISCALE",
    "SHAPES",
    "Tiles",
    "checked_dataset",
    "coco_category_ids",
    "coco_things",
    "cut_tiles",
    "from_dataset",
    "load_coco",
    "load_coco_panoptic",
    "load_images",
    "load_shapes",
    "load_tfds",
    "load_tfrecord",
    "load_voc",
    "load_yolo",
    "prepare",
    "readable_errors",
    "split",
    "summarize",
    "write_tfrecord",
]
