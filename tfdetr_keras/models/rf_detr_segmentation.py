"""RF-DETR with a mask for each query: instance segmentation in real time.

Source:
    Robinson et al. 2025, "RF-DETR: Neural Architecture Search for Real-Time Detection Transformers", arXiv:2511.09554.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import keras
from keras import ops

from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.layers.segmentation_head import REDUCTION, SegmentationHead, masks_of
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.losses.mask_criterion import PointMaskCriterion, criterion_with_masks
from tfdetr_keras.models.rf_detr import RFDETR, SMALL, RFDETRConfig
from tfdetr_keras.models.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class RFDETRSegmentationConfig(RFDETRConfig):
    """The architecture of an `RFDETRForSegmentation`: an RF-DETR's, whose parts also are `segmentation_head`.

    Source:
        RF-DETR's code (`rfdetr`), config.py.
    """

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (*super().own_parts, "segmentation_head")


def _size(side: int, decoder_layers: int, queries: int, windows: int = 2) -> RFDETRSegmentationConfig:
    backbone = DINOv2Config(patch_size=12, windows=windows, table_side=side // 12)
    return RFDETRSegmentationConfig(backbone, num_queries=queries, decoder_layers=decoder_layers)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class RFDETRForSegmentation(Segmenter, RFDETR):
    """RF-DETR with a mask for each query, learnt together with the boxes.

    Inputs, targets and methods are those of `RFDETR`. Outputs: those of `RFDETR`, and `"pred_masks": (batch, queries,
    height / 4, width / 4)`, float32 logits; `detect` makes objects with masks of them, and `segment` segments. With
    `training=True` there is `"point_masks"` instead, from which the loss makes the masks of matched queries alone, of
    all decoder layers, groups and proposals.

    Targets of `fit` and `evaluate`: those of `RFDETR` and `"masks": (batch, boxes, height, width)` bool or 0/1, as
    `prepare` makes them of records that were read with masks. `loss_mask` and `loss_dice` are logged, too.

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default.

    Source:
        Robinson et al. 2025, "RF-DETR", arXiv:2511.09554.
    """

    config_class: ClassVar[type[RFDETRConfig]] = RFDETRSegmentationConfig
    presets: ClassVar[Mapping[str, RFDETRConfig]] = {
        "rf-detr-seg-nano": _size(312, 4, 100, windows=1),
        "rf-detr-seg-small": _size(384, 4, 100),
        "rf-detr-seg-medium": _size(432, 5, 200),
        "rf-detr-seg-large": _size(504, 5, 200),
        "rf-detr-seg-xlarge": _size(624, 6, 300),
        "rf-detr-seg-2xlarge": _size(768, 6, 300),
        "rf-detr-seg-tiny": RFDETRSegmentationConfig(**SMALL),
    }
    published: ClassVar[Mapping[str, str]] = {}
    title = "RF-DETR for segmentation"
    without_masks = RFDETR
    logged = (*RFDETR.logged, "loss_mask", "loss_dice")
    config: RFDETRSegmentationConfig

    @classmethod
    def from_detector(cls, detector: RFDETR, freeze: bool = False) -> RFDETRForSegmentation:
        """Make a segmentation model of a detector, with a new mask head.

        Args:
            detector: an RF-DETR, whose weights are copied.
            freeze: whether the mask head alone is trained; otherwise all that the detector trains, too, as its authors
                train it.

        Raises:
            ValueError: the detector is of another class.
        """
        from tfdetr_keras.models.registry import with_masks  # which knows this class

        model = cast(RFDETRForSegmentation, with_masks(detector, cls))
        if freeze:
            model.freeze(detector.config.parts)
        return model

    @classmethod
    def criterion_of(cls, criterion: SetCriterion) -> PointMaskCriterion:
        """Return the criterion of a checkpoint; one without masks gets the weights of masks that the authors have."""
        return criterion if isinstance(criterion, PointMaskCriterion) else criterion_with_masks(criterion)

    @staticmethod
    def default_criterion() -> PointMaskCriterion:
        """Return the authors' loss."""
        return PointMaskCriterion(classification="iou_aware", cost_class=2.0)

    def _make_parts(self) -> None:
        super()._make_parts()
        config = self.config
        self.segmentation_head = SegmentationHead(
            config.d_model, config.decoder_layers, name="segmentation_head", dtype=self.dtype_policy
        )
        self.points = keras.random.SeedGenerator()

    def masks_of(self, mask_inputs: dict[str, Any], queries: Any) -> Any:
        """Make the masks of some queries.

        Args:
            mask_inputs: as `stages` gives them without masks.
            queries: `(batch, n)` int, their numbers.

        Returns:
            `(batch, n, height / 4, width / 4)` float32 logits.
        """
        own = ops.take_along_axis(mask_inputs["queries"], queries[..., None], axis=1)
        return masks_of(mask_inputs["features"], own, mask_inputs["bias"])

    def _forward(
        self, inputs: Any, training: bool, attention: bool = False, masks: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs, stages = super()._forward(inputs, training, attention)
        pixels, _ = self._pixels(inputs)
        depth = self.config.decoder_layers
        first = 0 if training and self.auxiliary_outputs else depth - 1
        parts = self.segmentation_head(
            stages["projector.level0"],
            [stages[f"decoder.layer{index}"] for index in range(first, depth)],
            size=ops.shape(pixels)[1:3],
            proposals=stages["proposals.embeddings"] if training and self.auxiliary_outputs else None,
        )
        if training:
            own = {"bias": parts["bias"], "seed": self.points, "canvas": self._canvas()}
            outputs["point_masks"] = {**own, "features": parts["features"], "queries": parts["queries"]}
            if self.auxiliary_outputs:
                of_proposals = {"features": parts["proposal_features"], "queries": parts["proposal_queries"]}
                outputs["prediction_sets"]["encoder"]["point_masks"] = {**own, **of_proposals}
            return outputs, stages
        of_last = {"features": parts["features"][:, -1], "queries": parts["queries"][:, -1], "bias": parts["bias"]}
        if masks:
            outputs["pred_masks"] = masks_of(**of_last)
        else:
            outputs["mask_inputs"] = of_last
        return outputs, stages

    def _canvas(self) -> tuple[int, int]:
        """Return the usual height and width of masks."""
        height, width = self.config.preprocessing.largest
        return height // REDUCTION, width // REDUCTION
