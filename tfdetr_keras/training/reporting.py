"""The readable files of a run's folder: metrics, curves, pictures and the report, kept up to date while training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.backend.processes import process_index
from tfdetr_keras.data.record import title_of
from tfdetr_keras.inference.segments import lay_masks
from tfdetr_keras.training.average_precision import AveragePrecision
from tfdetr_keras.training.checkpoint import Checkpoint
from tfdetr_keras.training.run_folder import PREDICTIONS, SEGMENTS, TENSORBOARD, RunFolder
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.visualize import draw_detections, draw_segments

PICTURES = 12  # validation images in predictions.png and segments.png
SHOWN_FROM = 0.5  # a detection's score
# Curves and report are written anew at most that often: short epochs should not wait for them.
SECONDS_BETWEEN_REPORTS = 30


class LearningRate(keras.callbacks.Callback):
    """A callback that adds the learning rate to the logs."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the learning rate of the epoch's last step."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class Reporting(keras.callbacks.Callback):
    """A callback that writes the readable files of a run; it comes after the checkpoint in the list of callbacks.

    Args:
        run: the folder.
        checkpoint: of the run.
        validation: records to measure AP on, or None.
        class_names: name of each label.
        settings: of the run.
        masks: whether the model has masks, which are then measured and drawn, too.
    """

    def __init__(
        self,
        run: RunFolder,
        checkpoint: Checkpoint,
        validation: tf.data.Dataset | None,
        class_names: Sequence[str],
        settings: Settings,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.run, self.checkpoint = run, checkpoint
        self.validation, self.class_names, self.settings, self.masks = validation, class_names, settings, masks
        self.precision: AveragePrecision | None = None
        if validation is not None:
            self.precision = AveragePrecision(
                validation,
                class_names,
                **settings.evaluation(settings.preprocessing_of(None)),
                every=settings.evaluate_every,
                averaged=bool(settings.ema_momentum),
                masks=masks,
            )
            checkpoint.when_best = self.keep_best
        self._next_report = 0.0
        self._shown: list[dict[str, np.ndarray]] | None = None
        self._titles: list[str] = []

    def before(self) -> list[keras.callbacks.Callback]:
        """Return the callbacks whose metrics the checkpoint keeps."""
        measuring: list[keras.callbacks.Callback] = [LearningRate()]
        if self.precision is not None:
            measuring.append(self.precision)
        if self.settings.tensorboard and process_index() == 0:
            measuring.append(keras.callbacks.TensorBoard(self.run.path / TENSORBOARD, write_graph=False))
        return measuring

    def keep_best(self, epoch: int) -> None:
        """Write the metrics of a new best model, and draw its detections."""
        if self.precision is None or self.validation is None:
            return
        self.run.write_best(self.precision.metrics, epoch)
        if self._shown is None:
            with_objects = self.validation.filter(lambda record: tf.size(record["labels"]) > 0)
            with_objects = with_objects.map(lambda record: {key: record[key] for key in record if key != "masks"})
            self._shown = list(with_objects.take(PICTURES).as_numpy_iterator())
            self._titles = [title_of(self.validation, int(record["image_id"])) for record in self._shown]
        if not self._shown:
            return
        of_image = {image["image_id"]: image for image in self.precision.evaluator.detections}
        images = [record["image"] for record in self._shown]
        found = [of_image[int(record["image_id"])] for record in self._shown]
        with whole_file(self.run.path / PREDICTIONS) as partial:
            draw_detections(images, found, self.class_names, partial, ground_truth=self._shown, titles=self._titles)
        if self.masks:
            with whole_file(self.run.path / SEGMENTS) as partial:
                segments = [_segments(one, image.shape[:2]) for one, image in zip(found, images, strict=True)]
                draw_segments(images, segments, self.class_names, partial, titles=self._titles)
        if self.settings.tensorboard:
            with tf.summary.create_file_writer(str(self.run.path / TENSORBOARD / "validation")).as_default():
                for name in (PREDICTIONS, SEGMENTS) if self.masks else (PREDICTIONS,):
                    picture = np.asarray(Image.open(self.run.path / name).convert("RGB"))
                    tf.summary.image(Path(name).stem, picture[None], step=epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the metrics, and the curves and the report if it is time to; only the first of several workers does."""
        if process_index() != 0:
            return
        self.run.write_log(self.checkpoint.history)
        if time.monotonic() >= self._next_report:
            self.tell()
            self._next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS

    def tell(self) -> None:
        """Write metrics, curves and report."""
        if process_index() != 0:
            return
        history = self.checkpoint.history
        if history:
            self.run.write_log(history)
            self.run.write_curves(history)
        self.run.write_report(history)


def _segments(found: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the confident detections of an image as segments to draw, from their masks as run lengths."""
    rows = np.flatnonzero(found["scores"] > SHOWN_FROM)
    masks = [coco_mask.decode(found["masks"][row]) for row in rows]
    confident = {"scores": found["scores"][rows], "labels": found["labels"][rows]}
    return lay_masks({**confident, "masks": np.array(masks, bool).reshape(-1, *size)})
