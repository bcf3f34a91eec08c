"""Pretraining of backbones without weights: they learn where each class is before the detector learns boxes.

DETR's backbone comes pretrained on ImageNet (section 4, "Technical details"). From random weights, the transformer
would first get meaningless features, which takes very long. `BackbonePretraining` trains the backbone alone, on the
detector's own dataset, to predict for each cell of its last feature map which classes' boxes cover the cell. That is a
plain convolutional task and takes minutes where the detector would take hours.
"""

from __future__ import annotations

from typing import Any

from keras import layers, ops

from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.fit_data import checked, is_tf_dataset
from tfdetr_keras.models.own_loss import OwnLossModel


class BackbonePretraining(OwnLossModel):
    """A detector's backbone with a 1×1 convolution that predicts which classes cover each cell.

    The backbone is shared, not copied: after `fit` the detector has the weights. Compile it with an optimizer of its
    own and fit it on the detector's datasets; the loss, mean binary cross-entropy over cells and classes, is built in.

    Inputs and targets: those of the detector. Outputs: `(batch, rows, columns, num_classes)` float32 logits.

    Args:
        detector: the model whose `backbone` is trained. Its `batch_norm` should be `"trainable"`: frozen
            statistics are for pretrained weights.
    """

    loss_advice = "the loss, cross-entropy over cells and classes, is the model's own"

    def __init__(self, detector: Detector, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = detector.config.num_classes
        self.backbone = detector.backbone
        self.head = layers.Conv2D(self.num_classes, 1, dtype="float32", name="head")

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `{"pixel_values": (batch, height, width, 3)}` to `(batch, rows, columns, num_classes)` logits."""
        return self.head(self.backbone(inputs["pixel_values"], training=training)[-1])

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the mean binary cross-entropy over the cells whose centre lies in the image and over the classes."""
        rows, columns = ops.shape(y_pred)[1:3]
        height, width = ops.shape(x["pixel_values"])[1:3]
        vertical = _cell_centres(rows, height, ops.sum(x["pixel_mask"][:, :, 0], axis=1))
        horizontal = _cell_centres(columns, width, ops.sum(x["pixel_mask"][:, 0, :], axis=1))
        covered = _covering_classes(y, vertical, horizontal, self.num_classes)
        in_image = ops.logical_and(vertical[:, :, None] < 1.0, horizontal[:, None, :] < 1.0)
        weight = ops.cast(in_image, "float32")
        per_cell = ops.mean(ops.binary_crossentropy(covered, y_pred, from_logits=True), axis=-1)
        return ops.sum(per_cell * weight) / ops.maximum(ops.sum(weight), 1.0)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run Keras' `fit`, with the detector's checks of the targets."""
        if is_tf_dataset(x):
            kwargs.setdefault("shuffle", False)
        of_datasets: Any = None
        if is_tf_dataset(x):
            from tfdetr_keras.data import checks as of_datasets  # TensorFlow is there already

        with checked(x, y, num_classes=self.num_classes, of_datasets=of_datasets) as x:
            return super().fit(x, y, *args, **kwargs)


def _cell_centres(cells: Any, pixels: Any, image_pixels: Any) -> Any:
    """Return where the cells' centres lie along one side, `(batch, cells)`.

    They are 0 … 1 in the image and larger in its padding.
    """
    centre = (ops.arange(cells, dtype="float32") + 0.5) * (ops.cast(pixels, "float32") / ops.cast(cells, "float32"))
    return centre[None, :] / ops.cast(ops.maximum(image_pixels, 1), "float32")[:, None]


def _covering_classes(targets: Any, vertical: Any, horizontal: Any, num_classes: int) -> Any:
    """Return `(batch, rows, columns, num_classes)` float32, 1 where a box of the class covers the cell's centre."""
    boxes = targets["boxes"]  # cxcywh
    inside_y = ops.abs(vertical[:, :, None] - boxes[:, None, :, 1]) <= boxes[:, None, :, 3] / 2
    inside_x = ops.abs(horizontal[:, :, None] - boxes[:, None, :, 0]) <= boxes[:, None, :, 2] / 2
    inside = ops.cast(ops.logical_and(inside_y[:, :, None, :], inside_x[:, None, :, :]), "float32")
    # Padding rows have the label −1, whose row of the one-hot table is all zero.
    return ops.clip(ops.einsum("byxm,bmc->byxc", inside, ops.one_hot(targets["labels"], num_classes)), 0.0, 1.0)
