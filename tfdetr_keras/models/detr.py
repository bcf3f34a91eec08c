"""DETR: backbone, transformer and heads (section 3, figure 2).

Source:
    Carion et al. 2020, "End-to-End Object Detection with Transformers", arXiv:2005.12872.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backbones.config import one_of, share, whole_number
from tfdetr_keras.backbones.resnet import RESNETS, ResNetConfig
from tfdetr_keras.layers.heads import BoxHead, class_head
from tfdetr_keras.layers.mlp import linear_initializers
from tfdetr_keras.layers.position import TEMPERATURE, LearnedPositionEmbedding, SinePositionEmbedding
from tfdetr_keras.layers.resize import resize_nearest
from tfdetr_keras.layers.transformer import Decoded, Decoder, Encoder
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.inputs import pixels_and_mask
from tfdetr_keras.preprocessing import Preprocessing

_WHOLE_NUMBERS = (
    *("d_model", "encoder_layers", "decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
)


@dataclasses.dataclass(frozen=True)
class DETRConfig(DetectorConfig):
    """The architecture of a DETR and the names of its classes.

    Beside these, the fields of every detector: `backbone`, a `ResNetConfig`; `num_classes` (the class head has one more
    output, the last, for "no object"); `num_queries`; `auxiliary_outputs`; `id2label`; `frozen`; `preprocessing`;
    `recipe`. See `DetectorConfig`.

    Args:
        d_model: width of the transformer.
        encoder_layers: encoder depth.
        decoder_layers: decoder depth.
        encoder_attention_heads: heads of the encoder's attention.
        decoder_attention_heads: heads of the decoder's attentions.
        encoder_ffn_dim: hidden width of the encoder's feed-forward networks.
        decoder_ffn_dim: hidden width of the decoder's feed-forward networks.
        activation_function: activation of the feed-forward networks, by its Keras name, or `"prelu"`.
        dropout: dropout of every residual branch.
        attention_dropout: dropout of the attention weights.
        activation_dropout: dropout inside the feed-forward networks.
        position_embedding: `"sine"` (fixed, normalised to the unpadded image) or `"learned"` (50 rows × 50 columns).

    Source:
        DETR, section 3.2 and appendix A.4; the defaults are those of its experiments.
    """

    pre_norm: ClassVar[bool] = False  # whether a branch is normalised before it rather than after

    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    position_embedding: Literal["sine", "learned"] = "sine"

    def _check(self) -> None:
        one_of("position_embedding", self.position_embedding, ("sine", "learned"))
        for name in _WHOLE_NUMBERS:
            whole_number(name, getattr(self, name))
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            share(name, getattr(self, name))
        if not isinstance(self.activation_function, str):
            raise ValueError(f"activation_function must be the name of one, not {self.activation_function!r}")
        if self.d_model % 4:  # sine and cosine, for x and for y
            raise ValueError(f"d_model={self.d_model} must be divisible by 4")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not divisible by {name}={getattr(self, name)}")

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (
            *("input_projection", "position_embedding", "query_embedding"),
            *("encoder", "decoder", "class_head", "box_head"),
        )

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperatures of the sine positions, of y and of x, see `SinePositionEmbedding`."""
        return TEMPERATURE, TEMPERATURE

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the encoder."""
        own = {"depth": self.encoder_layers, "heads": self.encoder_attention_heads, "hidden": self.encoder_ffn_dim}
        return {**own, **self._of_both, "final_norm": self.pre_norm}

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        own = {"depth": self.decoder_layers, "heads": self.decoder_attention_heads, "hidden": self.decoder_ffn_dim}
        return {**own, **self._of_both}

    @property
    def _of_both(self) -> dict[str, Any]:
        names = ("d_model", "dropout", "attention_dropout", "activation_dropout", "pre_norm")
        return {"activation": self.activation_function, **{name: getattr(self, name) for name in names}}

    @property
    def network(self) -> str:
        """The network in words: what stands behind "a DETR over"."""
        return (
            f"{self.backbone.title}, {self.encoder_layers} encoder and {self.decoder_layers} decoder layers, "
            f"{self.num_queries} queries"
        )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Make a configuration of what `to_dict` gave, in this version or one that had `pre_norm` as a field.

        Raises:
            ValueError: fields that this class does not have, or that do not fit; a Table Transformer of such a version.
        """
        fields = dict(fields)
        if fields.pop("pre_norm", cls.pre_norm) != cls.pre_norm:
            raise ValueError(
                "pre_norm: this describes a Table Transformer, which earlier versions of tfdetr_keras saved as a DETR: "
                "td.load_model(path) reads it"
            )
        return super().of(fields)


TINY = DETRConfig(
    # Small enough to train from scratch on a CPU: two stages, for a stride of 8, so that images of 64 pixels have 64
    # positions.
    backbone=ResNetConfig(block="basic", depths=(1, 2), channels=(64, 128), stem_channels=32, batch_norm="trainable"),
    num_queries=25,
    d_model=96,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=256,
    decoder_ffn_dim=256,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    preprocessing=Preprocessing((64, 64), pad_to=(64, 64)),
    recipe={"learning_rate": 4e-4, "backbone_multiplier": 0.5, "augmentation": "flip", "freeze": ""},
)


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

    Stages: `backbone.stage1` … (batch, h, w, channels), `mask` and `position` of the last feature map, `projection` and
    `encoder.layer0` … (batch, h·w, d_model), `decoder.layer0` … (batch, queries, d_model) after the shared
    normalisation; with `attention` also `decoder.layer0.attention` … (batch, heads, queries, h·w).

    The weights exist from the start, and sizes of images do not matter to them.

    Args:
        config: the architecture.
        criterion: the training loss; the paper's by default.

    Source:
        Carion et al. 2020, "End-to-End Object Detection with Transformers", arXiv:2005.12872.
    """

    config_class: ClassVar[type[DETRConfig]] = DETRConfig
    presets: ClassVar[Mapping[str, DETRConfig]] = {
        **{
            f"detr-{name}{suffix}": DETRConfig(backbone=dataclasses.replace(backbone, dilation=bool(suffix)))
            for name, backbone in RESNETS.items()
            for suffix in ("", "-dc5")
        },
        "detr-tiny": TINY,
    }
    published: ClassVar[Mapping[str, str]] = {
        f"facebook/{name}": name
        for name in ("detr-resnet-50", "detr-resnet-50-dc5", "detr-resnet-101", "detr-resnet-101-dc5")
    }
    encoder_class: ClassVar[type[Encoder]] = Encoder
    decoder_class: ClassVar[type[Decoder]] = Decoder
    title = "DETR"
    config: DETRConfig

    def _make_parts(self) -> None:
        config, policy = self.config, self.dtype_policy
        self.backbone = config.backbone.make(name="backbone", dtype=policy)
        self.input_projection = layers.Conv2D(
            config.d_model,
            1,
            name="input_projection",
            dtype=policy,
            **linear_initializers(config.backbone.channels[-1]),
        )
        self.position_embedding = self._new_position_embedding()
        self.query_embedding = self._new_query_embedding()
        self.encoder = self.encoder_class(**config.encoder_options, name="encoder", dtype=policy)
        self.decoder = self.decoder_class(**config.decoder_options, name="decoder", dtype=policy)
        # The heads stay in float32 under mixed precision: boxes need more than bfloat16's three digits.
        self.class_head, self.box_head = self._new_heads()

    def _new_position_embedding(self) -> Any:
        """Return what makes positions of a mask."""
        config, options = self.config, {"name": "position_embedding", "dtype": self.dtype_policy}
        if config.position_embedding == "learned":
            return LearnedPositionEmbedding(config.d_model, **options)
        return SinePositionEmbedding(config.d_model, config.temperatures, **options)

    def _new_query_embedding(self) -> Any:
        """Return the learned queries, with `num_queries` rows."""
        return layers.Embedding(
            self.config.num_queries,
            self.config.d_model,
            embeddings_initializer=initializers.RandomNormal(stddev=1.0),
            name="query_embedding",
            dtype=self.dtype_policy,
        )

    def _new_heads(self) -> tuple[Any, Any]:
        """Return the class head and the box head."""
        width = self.config.d_model
        classes = class_head(width, self.config.num_logits, name="class_head", dtype="float32")
        return classes, BoxHead(width, name="box_head", dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        sequence = (None, None, self.config.d_model)
        self.backbone.build((None, None, None, 3))
        self.input_projection.build((None, None, None, self.config.backbone.channels[-1]))
        self.position_embedding.build((None, None, None))
        self.query_embedding.build((None, self.config.num_queries))
        self.encoder.build(sequence)
        self.decoder.build(sequence)
        self.class_head.build(sequence)
        self.box_head.build(sequence)

    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        pixels, pixel_mask = pixels_and_mask(inputs)
        features = self.backbone(pixels, training=training)
        batch, height, width = ops.shape(features[-1])[:3]
        mask = resize_nearest(pixel_mask, height, width)
        position = self.position_embedding(mask)
        projection = self.input_projection(features[-1])

        def flatten(x: Any) -> Any:
            return ops.reshape(x, (batch, height * width, self.config.d_model))

        key_mask = ops.reshape(ops.cast(mask, "bool"), (batch, 1, height * width))
        encoded = self.encoder(flatten(projection), flatten(position), key_mask, training=training)
        query_position, content = self._queries(batch)
        decoded = self.decoder(
            query_position,
            encoded[-1],
            flatten(position),
            key_mask,
            class_head=self.class_head,
            box_head=self.box_head,
            content=content,
            earlier_layers=self.auxiliary_outputs,
            training=training,
            return_attention_scores=attention,
        )

        stages = {f"backbone.stage{index + 1}": feature for index, feature in enumerate(features)}
        stages.update(mask=mask, position=flatten(position), projection=flatten(projection))
        stages.update({f"encoder.layer{index}": x for index, x in enumerate(encoded)})
        stages.update({f"decoder.layer{index}": x for index, x in enumerate(decoded.embeddings)})
        stages.update({f"decoder.layer{index}.attention": x for index, x in enumerate(decoded.attention)})
        return self._outputs(decoded), stages

    def _queries(self, batch: Any) -> tuple[Any, Any]:
        """Return the queries' positions `(batch, queries, d_model)`, and what they are at first; None for zeros."""
        position = self.query_embedding(ops.arange(self.config.num_queries))
        return ops.broadcast_to(position[None], (batch, self.config.num_queries, self.config.d_model)), None

    def _outputs(self, decoded: Decoded) -> dict[str, Any]:
        outputs = {"logits": decoded.logits[:, -1], "pred_boxes": decoded.boxes[:, -1]}
        if self.auxiliary_outputs:
            outputs.update(aux_logits=decoded.logits[:, :-1], aux_boxes=decoded.boxes[:, :-1])
        return outputs
