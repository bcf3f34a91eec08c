"""Image processors of transformers: what goes into a detector, and what is made of what comes out."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import ConditionalDetrImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import (
    DetrImageProcessorPil,  # by its own name; as DetrImageProcessor it asks for torchvision
    prepare_coco_panoptic_annotation,
)
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil


def prepare(images, settings=None, **options):
    """What `DetrImageProcessor` of the given settings makes of an image or of several, as arrays."""
    return DetrImageProcessorPil(**settings or {})(images, return_tensors="np", **options)


def prepare_by_rt_detr(folder, image):
    """What RT-DETR's image processor, as the file of a folder has it, makes of an image, as arrays."""
    return RTDetrImageProcessorPil.from_pretrained(folder)(image, return_tensors="np")


def side_of_square(side, settings):
    """To which side `transformers.DetrImageProcessor` of the given settings brings a square image."""
    image = np.zeros((side, side, 3), np.uint8)
    return transformers.DetrImageProcessor(**settings)(image, return_tensors="np")["pixel_values"].shape[-1]


def size_of(settings):
    """The size that `transformers.DetrImageProcessor` reads out of its settings."""
    return dict(transformers.DetrImageProcessor(**settings).size)


def sizes(sides, shortest, longest, rule):
    """The new (height, width) of each (height, width)."""
    if rule == "fit":
        return [get_image_size_for_max_height_width(tuple(side), shortest, longest) for side in sides]
    return [get_size_with_aspect_ratio(tuple(side), shortest, longest) for side in sides]


def panoptic_annotation(image, annotation, folder):
    """One image's targets out of an entry of COCO's panoptic annotations and the folder of its maps."""
    return prepare_coco_panoptic_annotation(image, annotation, folder, input_data_format="channels_last")


def detections(outputs, sizes, threshold):
    """What DETR's post-processing finds in outputs that are arrays: for each image `scores`, `labels` and `boxes`."""
    processor = DetrImageProcessorPil()
    return processor.post_process_object_detection(tensors(outputs), threshold, torch.from_numpy(sizes))


def conditional_detections(outputs, sizes, threshold, top_k):
    """The same by Conditional DETR's post-processing."""
    processor = ConditionalDetrImageProcessorPil()
    return processor.post_process_object_detection(tensors(outputs), threshold, torch.from_numpy(sizes), top_k)


def tensors(outputs):
    """Named arrays as the outputs of a model."""
    return SimpleNamespace(**{name: torch.from_numpy(value) for name, value in outputs.items()})


def settings(size):
    """Class and settings of `DetrImageProcessor` for a size, as `of_folder` tells them."""
    return _told(DetrImageProcessorPil(size={"shortest_edge": size[0], "longest_edge": size[1]}))


def of_folder(folder):
    """Class and settings of what `AutoImageProcessor` makes of a folder."""
    return _told(transformers.AutoImageProcessor.from_pretrained(folder))


def _told(processor):
    # Plain values: an object of transformers' would make whoever receives it import transformers.
    return {"class": type(processor).__name__, **json.loads(processor.to_json_string())}


def prepare_by_folder(folder, image):
    """What `AutoImageProcessor` of a folder makes of an image, as arrays."""
    return dict(transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="np"))


@torch.no_grad()
def run_folder(folder, image):
    """A folder's image processor and then its model on an image: `(inputs, outputs)`, and the names of classes."""
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    detector = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    outputs = detector(**inputs)
    return inputs, {name: outputs[name] for name in ("logits", "pred_boxes")}, detector.config.id2label


def warnings_about_folder(folder):
    """What transformers warns of when it reads a folder's image processor and its model."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    transformers.logging.set_verbosity_warning()
    try:
        transformers.AutoImageProcessor.from_pretrained(folder)
        transformers.AutoModelForObjectDetection.from_pretrained(folder)
    finally:
        transformers.logging.set_verbosity_error()
        logger.removeHandler(handler)
    return messages
