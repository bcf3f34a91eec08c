"""DETR: backbone, transformer and heads (DETR, section 3, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import initializers, layers, ops

from tfdetr_keras.models.backbone import ResNet
from tfdetr_keras.models.config import DETRConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.mlp import MLP
from tfdetr_keras.models.position import LearnedPositionEmbedding, SinePositionEmbedding
from tfdetr_keras.models.resize import resize_nearest
from tfdetr_keras.models.transformer import Decoder, Encoder, linear_initializers


class BoxHead(MLP):
    """Three dense layers and a sigmoid: an object embedding to a relative box (DETR, section 3.2, "FFNs").

    Args:
        d_model: width of the embeddings.
        zero_output: whether it starts by giving each object the same box, the one of its offset.
    """

    def __init__(self, d_model: int, zero_output: bool = False, **kwargs: Any) -> None:
        super().__init__(d_model, (d_model, d_model, 4), zero_output, **kwargs)

    def call(self, inputs: Any, offset: Any = None) -> Any:
        """`(…, d_model)` → `(…, 4)` cxcywh in [0, 1]; `offset` `(…, 4)` is added before the sigmoid."""
        boxes = super().call(inputs)
        return ops.sigmoid(boxes if offset is None else boxes + offset)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DETR(Detector):
    """End-to-end object detection with transformers.

    Inputs: `{"pixel_values": (batch, height, width, 3) float, RGB, "pixel_mask": (batch, height, width), 1 = image,
    0 = padding}`, made of images as `preprocessing` says. The mask may be left out (no padding), then the pixels may
    also stand alone. Any size and batch.

    Outputs: `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_boxes": (batch, queries, 4) cxcywh
    in [0, 1] of the unpadded image}`, float32; while `auxiliary_outputs` is true also `"aux_logits"` and `"aux_boxes"`,
    the same with an axis of the earlier decoder layers after the batch.

    Targets of `fit` and `evaluate`: `{"labels": (batch, boxes) int, −1 = padding row, "boxes": (batch, boxes, 4)
    float, cxcywh in [0, 1] of the unpadded image}`. The loss is the model's own: `compile(optimizer=…)` needs no
    `loss=`. `loss`, `loss_ce`, `loss_bbox`, `loss_giou` and `cardinality_error` are logged.

    The weights exist from the start, and sizes of images do not matter to them.

    Args:
        config: the architecture.
        criterion: the training loss; the paper's by default.

    Source:
        Carion et al. 2020, "End-to-End Object Detection with Transformers", arXiv:2005.12872.
    """

    decoder_class: type[Decoder] = Decoder
    title = "DETR"
    config: DETRConfig

    def _make_parts(self) -> None:
        config, policy = self.config, self.dtype_policy
        self.backbone = ResNet(config.backbone, name="backbone", dtype=policy)
        self.input_projection = layers.Conv2D(
            config.d_model,
            1,
            name="input_projection",
            dtype=policy,
            **linear_initializers(config.backbone.channels[-1]),
        )
        embedding = SinePositionEmbedding if config.position_embedding == "sine" else LearnedPositionEmbedding
        self.position_embedding = embedding(config.d_model, name="position_embedding", dtype=policy)
        self.query_embedding = layers.Embedding(
            config.num_queries,
            config.d_model,
            embeddings_initializer=initializers.RandomNormal(stddev=1.0),
            name="query_embedding",
            dtype=policy,
        )
        self.encoder = Encoder(config, name="encoder", dtype=policy)
        self.decoder = self.decoder_class(config, name="decoder", dtype=policy)
        # The heads stay in float32 under mixed precision: boxes need more than bfloat16's three digits.
        self.class_head, self.box_head = self._new_heads()

    def _new_heads(self) -> tuple[Any, Any]:
        """The class head and the box head."""
        width = self.config.d_model
        start = linear_initializers(width)
        class_head = layers.Dense(self.config.num_logits, name="class_head", dtype="float32", **start)
        return class_head, BoxHead(width, name="box_head", dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Creates all weights; their shapes depend on the configuration alone."""
        sequence = (None, None, self.config.d_model)
        self.backbone.build((None, None, None, 3))
        self.input_projection.build((None, None, None, self.config.backbone.channels[-1]))
        self.position_embedding.build((None, None, None))
        self.query_embedding.build((None, self.config.num_queries))
        self.encoder.build(sequence)
        self.decoder.build(sequence)
        self.class_head.build(sequence)
        self.box_head.build(sequence)

    def stages(self, inputs: Any, attention: bool = False) -> dict[str, Any]:
        """Runs inference and hands out every intermediate result by name, in the order of computation.

        Args:
            inputs: as for the model.
            attention: whether the decoder's attention to the image is wanted, too.

        Returns:
            `backbone.stage1` … (batch, h, w, channels), `mask` and `position` of the last feature map,
            `projection` and `encoder.layer0` … (batch, h·w, d_model), `decoder.layer0` … (batch, queries, d_model)
            after the shared normalisation, and the model's outputs; with `attention` also `decoder.layer0.attention` …
            (batch, heads, queries, h·w).
        """
        outputs, stages = self._forward(inputs, training=False, attention=attention)
        return {**stages, **outputs}

    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        pixels, pixel_mask = _unpack(inputs)
        features = self.backbone(pixels, training=training)
        batch, height, width = ops.shape(features[-1])[:3]
        mask = resize_nearest(pixel_mask, height, width)
        position = self.position_embedding(mask)
        projection = self.input_projection(features[-1])

        def flatten(x: Any) -> Any:
            return ops.reshape(x, (batch, height * width, self.config.d_model))

        key_mask = ops.reshape(ops.cast(mask, "bool"), (batch, 1, height * width))
        encoded = self.encoder(flatten(projection), flatten(position), key_mask, training=training)
        query_position = self.query_embedding(ops.arange(self.config.num_queries))
        query_position = ops.broadcast_to(query_position[None], (batch, self.config.num_queries, self.config.d_model))
        decoded = self.decoder(
            query_position,
            encoded[-1],
            flatten(position),
            key_mask,
            training=training,
            return_attention_scores=attention,
        )
        decoded, scores = decoded if attention else (decoded, [])

        stages = {f"backbone.stage{index + 1}": feature for index, feature in enumerate(features)}
        stages.update(mask=mask, position=flatten(position), projection=flatten(projection))
        stages.update({f"encoder.layer{index}": x for index, x in enumerate(encoded)})
        stages.update({f"decoder.layer{index}": x for index, x in enumerate(decoded)})
        stages.update({f"decoder.layer{index}.attention": x for index, x in enumerate(scores)})
        return self._heads(decoded if self.auxiliary_outputs else decoded[-1:]), stages

    def _heads(self, decoded: list[Any]) -> dict[str, Any]:
        embeddings = ops.stack(decoded, axis=1)
        logits, boxes = self.class_head(embeddings), self._boxes(embeddings)
        outputs = {"logits": logits[:, -1], "pred_boxes": boxes[:, -1]}
        if self.auxiliary_outputs:
            outputs.update(aux_logits=logits[:, :-1], aux_boxes=boxes[:, :-1])
        return outputs

    def _boxes(self, embeddings: Any) -> Any:
        return self.box_head(embeddings)


def _unpack(inputs: Any) -> tuple[Any, Any]:
    """Pixels and mask of the model's inputs, checked against each other as far as their shapes are known."""
    if not isinstance(inputs, Mapping):
        inputs = {"pixel_values": inputs}
    pixels = ops.convert_to_tensor(inputs["pixel_values"])
    if len(pixels.shape) != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixel_values must be (batch, height, width, 3), not {tuple(pixels.shape)}")
    mask = inputs.get("pixel_mask")
    if mask is None:
        return pixels, ops.ones(ops.shape(pixels)[:3], dtype="int32")
    mask = ops.convert_to_tensor(mask)
    sides = zip(pixels.shape[:3], mask.shape, strict=False)
    if len(mask.shape) != 3 or any(a is not None and b is not None and a != b for a, b in sides):
        raise ValueError(
            f"pixel_mask {tuple(mask.shape)} must have the batch, height and width of pixel_values "
            f"{tuple(pixels.shape)}"
        )
    return pixels, mask
