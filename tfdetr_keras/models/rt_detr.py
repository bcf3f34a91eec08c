"""RT-DETR: a hybrid encoder of several maps, its best tokens as queries, and boxes refined layer by layer.

Source:
    Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backbones.config import share, whole_number
from tfdetr_keras.backbones.resnet import RESNETS, ResNetConfig
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.class_embedding import ClassEmbedding
from tfdetr_keras.layers.deformable_transformer import DeformableDecoder
from tfdetr_keras.layers.heads import PRIOR_PROBABILITY, BoxHead, HeadOfEachLayer, class_head, inverse_sigmoid
from tfdetr_keras.layers.hybrid_encoder import HybridEncoder, ProjectedMaps
from tfdetr_keras.layers.levels import anchors, flattened, sizes_of, whole_extents
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.layers.proposals import TokenSelection, check_positions
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.losses.denoising import BOX_NOISE_SCALE, LABEL_NOISE_RATIO, DenoisingQueries, denoising_queries
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import INFERENCE_GRAPHS, Detector
from tfdetr_keras.models.inputs import pixels_without_padding
from tfdetr_keras.preprocessing import Preprocessing

_WHOLE_NUMBERS = (
    *("d_model", "encoder_dim", "encoder_ffn_dim", "encoder_layers", "encoder_attention_heads", "fusion_blocks"),
    *("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "num_feature_levels"),
)
_SHARES = ("dropout", "attention_dropout", "activation_dropout", "label_noise_ratio")
STRIDE = 32  # of the coarsest published map
PUBLISHED_IMAGES = Preprocessing((640, 640), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=STRIDE)


@dataclasses.dataclass(frozen=True)
class RTDETRConfig(DetectorConfig):
    """The architecture of an `RTDETR`; beside these the fields of every detector, see `DetectorConfig`.

    Args:
        d_model: width of the decoder.
        encoder_dim: width of the hybrid encoder.
        encoder_ffn_dim: hidden width of the feed-forward networks of its attention.
        encoder_layers: layers of its attention.
        encoder_attention_heads: heads of its attention.
        attended_levels: numbers of the maps whose pixels attend to each other, 0 = the finest.
        encoder_activation: activation of its feed-forward networks, by its Keras name.
        activation_function: activation of its convolutions.
        expansion: channels inside its fusion blocks, as a share of `encoder_dim`.
        fusion_blocks: RepVGG blocks in each fusion block.
        encoder_batch_norm: `"trainable"`, `"frozen"` or `"folded"`, see `ResNetConfig`; of all batch normalisation
            outside the backbone.
        num_feature_levels: how many of the backbone's maps are used, the coarsest.
        decoder_layers: decoder depth.
        decoder_attention_heads: heads of the decoder's attentions.
        decoder_ffn_dim: hidden width of the decoder's feed-forward networks.
        decoder_activation: activation of these.
        decoder_points: points of each level that a head of the decoder looks at.
        inference_layers: layers of the decoder that are used in inference; all by default. Each layer has heads, so
            that any number gives boxes: the fewer, the faster.
        dropout: dropout of every residual branch.
        attention_dropout: dropout of the attention weights.
        activation_dropout: dropout inside the feed-forward networks.
        num_denoising: objects that all groups of denoising queries together hold, see `td.losses.denoising_queries`; 0
            trains without.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: how far their boxes are moved.
        learned_content: whether queries begin with learned vectors instead of the tokens they were chosen for.

    Source:
        RT-DETR, section 4 and appendix, and the configurations of the authors' code.
    """

    sampling: ClassVar[str] = "bilinear"  # how the decoder reads the maps, see `td.deformable_attention`
    is_xavier: ClassVar[bool] = (
        False  # whether projections and feed-forward networks of the decoder start Xavier-uniform
    )
    offset_scale: ClassVar[float] = 0.5  # how far an offset of the decoder leads, see `DeformableAttention`
    mlp_activation: ClassVar[str] = "relu"  # of what makes the queries' positions
    absolute_sizes: ClassVar[bool] = False  # of denoising boxes whose corners have crossed

    backbone: Any = dataclasses.field(default_factory=lambda: _vd("resnet-50", "frozen"))
    num_classes: int = 80
    num_queries: int = 300
    preprocessing: Preprocessing = PUBLISHED_IMAGES
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(RECIPE))
    d_model: int = 256
    encoder_dim: int = 256
    encoder_ffn_dim: int = 1024
    encoder_layers: int = 1
    encoder_attention_heads: int = 8
    attended_levels: Sequence[int] = (2,)
    encoder_activation: str = "gelu"
    activation_function: str = "silu"
    expansion: float = 1.0
    fusion_blocks: int = 3
    encoder_batch_norm: BatchNorm = "trainable"
    num_feature_levels: int = 3
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 1024
    decoder_activation: str = "relu"
    decoder_points: int = 4
    inference_layers: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    num_denoising: int = 100
    label_noise_ratio: float = LABEL_NOISE_RATIO
    box_noise_scale: float = BOX_NOISE_SCALE
    learned_content: bool = False

    def _check(self) -> None:
        for name in _WHOLE_NUMBERS:
            whole_number(name, getattr(self, name))
        self._check_points()
        for name in _SHARES:
            share(name, getattr(self, name))
        if any(side % self.stride for side in self.preprocessing.size):
            raise ValueError(
                f"preprocessing.size must be in multiples of {self.stride} pixels, not {self.preprocessing.size}"
            )
        for name in ("box_noise_scale", "expansion"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")
        if int(self.encoder_dim * self.expansion) < 1:
            raise ValueError(f"expansion={self.expansion} leaves no channels of encoder_dim={self.encoder_dim}")
        if (
            isinstance(self.num_denoising, bool)
            or not isinstance(self.num_denoising, Integral)
            or self.num_denoising < 0
        ):
            raise ValueError(f"num_denoising must be a whole number of at least 0, not {self.num_denoising!r}")
        for width, heads in (("encoder_dim", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width}={getattr(self, width)} is not divisible by {heads}={getattr(self, heads)}")
        if self.encoder_dim % 4:  # sine and cosine, for x and for y
            raise ValueError(f"encoder_dim={self.encoder_dim} must be divisible by 4")
        maps = len(self.backbone.channels)
        if self.num_feature_levels > maps:
            raise ValueError(f"num_feature_levels={self.num_feature_levels}, but the backbone has {maps} maps")
        attended = self.attended_levels
        if not isinstance(attended, list | tuple) or not all(
            isinstance(level, Integral) and 0 <= level < self.num_feature_levels for level in attended
        ):
            raise ValueError(
                f"attended_levels must be numbers of levels, from 0 to {self.num_feature_levels - 1}, not {attended!r}"
            )
        object.__setattr__(self, "attended_levels", tuple(int(level) for level in attended))
        if self.inference_layers is not None:
            whole_number("inference_layers", self.inference_layers)
            if self.inference_layers > self.decoder_layers:
                raise ValueError(
                    f"inference_layers={self.inference_layers}, but the decoder has {self.decoder_layers} layers"
                )

    def _check_points(self) -> None:
        whole_number("decoder_points", self.decoder_points)

    def check_canvas(self, height: int, width: int) -> None:
        """Raise a `ValueError` for images that have fewer positions than there are queries."""
        strides = [self.stride // 2**level for level in range(self.num_feature_levels)]
        check_positions(sum((height // stride) * (width // stride) for stride in strides), self.num_queries)

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "varifocal"

    @property
    def knows_padding(self) -> bool:
        """Whether images may be padded."""
        return False

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's maps that are used."""
        return tuple(self.backbone.channels[-self.num_feature_levels :])

    @property
    def stride(self) -> int:
        """Pixels of the image, in each direction, to one of the coarsest map."""
        return int(2 ** (len(self.backbone.channels) + 1))

    @property
    def projects_encoded(self) -> bool:
        """Whether the encoder's maps are projected to the decoder's width."""
        return True

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (
            *("input_projection", "encoder"),
            *(("decoder_projection",) if self.projects_encoded else ()),
            "proposals",
            *(("content_embedding",) if self.learned_content else ()),
            *(("denoising_embedding",) if self.num_denoising else ()),
            *("query_position", "decoder", "class_head", "box_head", "encoder_class_head", "encoder_box_head"),
        )

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the hybrid encoder."""
        return {
            "levels": self.num_feature_levels,
            "channels": self.encoder_dim,
            "attended": self.attended_levels,
            "depth": self.encoder_layers,
            "heads": self.encoder_attention_heads,
            "hidden": self.encoder_ffn_dim,
            "expansion": self.expansion,
            "blocks": self.fusion_blocks,
            "activation": self.activation_function,
            "encoder_activation": self.encoder_activation,
            "batch_norm": self.encoder_batch_norm,
            **self._dropouts,
        }

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        return {
            "depth": self.decoder_layers,
            "d_model": self.d_model,
            "heads": self.decoder_attention_heads,
            "hidden": self.decoder_ffn_dim,
            "activation": self.decoder_activation,
            "levels": self.num_feature_levels,
            "points": self.decoder_points,
            "offset_scale": self.offset_scale,
            "sampling": self.sampling,
            "refine": True,
            "look_forward_twice": True,
            "xavier_output": False,
            "xavier_feed_forward": self.is_xavier,
            **self._dropouts,
        }

    @property
    def _dropouts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("dropout", "attention_dropout", "activation_dropout")}

    @property
    def network(self) -> str:
        """The network in words: what stands behind "an RT-DETR over"."""
        layers_ = f"{self.decoder_layers} decoder layers"
        if self.inference_layers is not None:
            layers_ += f" ({self.inference_layers} in inference)"
        return f"{self.backbone.title}, {self.num_feature_levels} levels, {layers_}, {self.num_queries} queries"

    @property
    def is_foldable(self) -> bool:
        """Whether the model has batch normalisation that can be folded into convolutions."""
        return super().is_foldable or self.encoder_batch_norm != "folded"

    def folded(self) -> Self:
        """Return the architecture of the same model with all batch normalisation folded."""
        return dataclasses.replace(super().folded(), encoder_batch_norm="folded")


def _vd(name: str, batch_norm: BatchNorm) -> ResNetConfig:
    return dataclasses.replace(RESNETS[name], variant="vd", batch_norm=batch_norm)


# Their authors train the batch normalisation of the smaller ones, and that of the larger ones, with the stem, not.
BACKBONES = {
    "r18": _vd("resnet-18", "trainable"),
    "r34": _vd("resnet-34", "trainable"),
    "r50": _vd("resnet-50", "frozen"),
    "r101": _vd("resnet-101", "frozen"),
}
# Decoder depth, and where it differs from `RTDETRConfig` the encoder, of the published sizes.
_SMALL, _LARGE = {"expansion": 0.5}, {"encoder_dim": 384, "encoder_ffn_dim": 2048}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "r18": {"backbone": BACKBONES["r18"], "decoder_layers": 3, **_SMALL},
    "r34": {"backbone": BACKBONES["r34"], "decoder_layers": 4, **_SMALL},
    "r50-m": {"backbone": BACKBONES["r50"], "frozen": "stem", "inference_layers": 3, **_SMALL},
    "r50": {"backbone": BACKBONES["r50"], "frozen": "stem"},
    "r101": {"backbone": BACKBONES["r101"], "frozen": "stem", **_LARGE},
}
RECIPE: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "backbone_multiplier": 0.1,
    "schedule": "constant",
    "weight_decay_exclude": ["norms", "biases"],
    "ema_momentum": 0.9999,
    "ema_ramp_steps": 2000,
    "augmentation": "strong",
    "multiscale": True,
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    **{size: RECIPE for size in SIZES},
    "r101": {**RECIPE, "backbone_multiplier": 0.01},
}
TINY = RTDETRConfig(
    # Small enough to train from scratch on a CPU, and to be part of the package.
    backbone=ResNetConfig("basic", (1, 1, 1, 1), (32, 64, 128, 192), 32, variant="vd", batch_norm="trainable"),
    num_queries=50,
    d_model=128,
    encoder_dim=128,
    encoder_ffn_dim=256,
    encoder_attention_heads=4,
    expansion=0.5,
    decoder_layers=3,
    decoder_attention_heads=4,
    decoder_ffn_dim=256,
    num_denoising=25,
    preprocessing=Preprocessing((64, 64), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=STRIDE),
    recipe={
        "learning_rate": 4e-4,
        "backbone_multiplier": 0.5,
        "augmentation": "flip",
        "ema_momentum": 0.999,
        "ema_ramp_steps": 500,
        "freeze": "",
    },
)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class RTDETR(Detector):
    """A DETR in real time: convolutions and attention share the encoder, and its best tokens are the queries.

    Inputs: pixels `(batch, height, width, 3)`, float, RGB in [0, 1], alone or as `{"pixel_values": …}`; height and
    width are multiples of 32, and may differ. Images are stretched to one size, not padded: a `pixel_mask` with padding
    in it is refused.

    Outputs: `{"logits": (batch, queries, num_classes), each class an independent sigmoid, "pred_boxes": (batch,
    queries, 4) cxcywh in [0, 1] of the image}`, float32; while `auxiliary_outputs` is true also `"aux_logits"` and
    `"aux_boxes"`, the same with an axis of the earlier decoder layers after the batch. One query may so speak for
    several classes.

    Targets, loss and methods are those of `DETR`. Training adds two prediction sets: `encoder`, the tokens that were
    chosen, and `denoising`, queries made of the objects (see `td.losses.denoising_queries`), which `fit` hands to the
    model. Gradients of a layer's boxes reach the layer before it, as in the authors' code ("look forward twice").

    Stages: `backbone.stage1` … and `input_projection.level0` … (batch, h, w, channels); `encoder.aifi0` …, the maps
    after their attention; `encoder.level0` …, the fused maps, finest first; `memory` and `proposals.logits` (batch,
    tokens, …); `proposals.embeddings` and `proposals.boxes` (batch, queries, …) of the chosen ones; `decoder.layer0` …
    (batch, queries, d_model) and `decoder.layer0.references` … (batch, queries, 4), with denoising queries first; with
    these also `denoising.logits` and `denoising.boxes` (batch, layers, slots, …).

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default, see `default_criterion`.

    Source:
        Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069.
    """

    config_class: ClassVar[type[RTDETRConfig]] = RTDETRConfig
    presets: ClassVar[Mapping[str, RTDETRConfig]] = {
        **{f"rt-detr-{size}": RTDETRConfig(**fields, recipe=RECIPES[size]) for size, fields in SIZES.items()},
        "rt-detr-tiny": TINY,
    }
    published: ClassVar[Mapping[str, str]] = {
        **{f"PekingU/rtdetr_{size}vd": f"rt-detr-{size}" for size in ("r18", "r34", "r50", "r101")},
        **{f"PekingU/rtdetr_{size}vd_coco_o365": f"rt-detr-{size}" for size in ("r18", "r50", "r101")},
    }
    wants_targets = True
    title = "RT-DETR"
    config: RTDETRConfig

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the authors' loss: varifocal, and a matching with the focal loss as its cost."""
        return SetCriterion(classification="varifocal", cost_class=2.0)

    def normalized_parts(self, config: RTDETRConfig) -> dict[str, layers.Layer]:
        """Make the parts that have batch normalisation, as a configuration says."""
        how, policy = config.encoder_batch_norm, self.dtype_policy
        start = "glorot_uniform" if config.is_xavier else None
        between = [config.encoder_dim] * config.num_feature_levels
        parts = {
            **super().normalized_parts(config),
            "input_projection": ProjectedMaps(
                config.map_channels, config.encoder_dim, how, name="input_projection", dtype=policy
            ),
            "encoder": HybridEncoder(**config.encoder_options, name="encoder", dtype=policy),
        }
        if config.projects_encoded:
            parts["decoder_projection"] = ProjectedMaps(
                between, config.d_model, how, start, name="decoder_projection", dtype=policy
            )
        return parts

    def _make_parts(self) -> None:
        config, policy = self.config, self.dtype_policy
        width = config.d_model
        for name, part in self.normalized_parts(config).items():
            setattr(self, name, part)
        self.proposals = TokenSelection(width, config.num_queries, name="proposals", dtype=policy)
        # The heads stay in float32 under mixed precision: boxes need more than bfloat16's three digits.
        self.encoder_class_head = self._class_head("encoder_class_head")
        self.encoder_box_head = self._box_head("encoder_box_head")
        if config.learned_content:
            start = initializers.GlorotUniform()
            self.content_embedding = layers.Embedding(
                config.num_queries, width, embeddings_initializer=start, name="content_embedding", dtype=policy
            )
        if config.num_denoising:
            self.denoising_embedding = ClassEmbedding(
                config.num_classes, width, name="denoising_embedding", dtype=policy
            )
            self.noise = keras.random.SeedGenerator()
        self.query_position = MLP(
            4,
            (2 * width, width),
            kernel_initializer="glorot_uniform",
            activation=config.mlp_activation,
            name="query_position",
            dtype=policy,
        )
        self._make_heads()

    def _make_heads(self) -> None:
        """Make the decoder, and the heads of its layers."""
        config, width = self.config, self.config.d_model
        self.decoder = DeformableDecoder(**config.decoder_options, name="decoder", dtype=self.dtype_policy)
        names = [f"layer{index}" for index in range(config.decoder_layers)]
        self.class_head = HeadOfEachLayer([self._class_head(name) for name in names], width, name="class_head")
        self.box_head = HeadOfEachLayer([self._box_head(name) for name in names], width, name="box_head")

    def _class_head(self, name: str) -> layers.Dense:
        return class_head(self.config.d_model, self.config.num_logits, PRIOR_PROBABILITY, name=name, dtype="float32")

    def _box_head(self, name: str) -> BoxHead:
        return BoxHead(self.config.d_model, zero_output=True, name=name, dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        self.backbone.build((None, None, None, 3))
        for part in self.config.own_parts:
            getattr(self, part).build((None, None, 4 if part == "query_position" else self.config.d_model))

    @property
    def inference_layers(self) -> int | None:
        """How many layers of the decoder are computed in inference; None for all. It is saved with the model."""
        return self.config.inference_layers

    @inference_layers.setter
    def inference_layers(self, value: int | None) -> None:
        self.config = dataclasses.replace(self.config, inference_layers=value)
        # What was compiled has the old number built in.
        self.test_function = self.predict_function = None
        self.__dict__.pop(INFERENCE_GRAPHS, None)

    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.config
        pixels = pixels_without_padding(inputs, config.stride, self.title)
        features = self.backbone(pixels, training=training)
        projected = self.input_projection(features[-config.num_feature_levels :], training=training)
        encoded = self.encoder(projected, training=training)
        maps = encoded.maps
        if config.projects_encoded:
            maps = self.decoder_projection(maps, training=training)
        memory = flattened(maps)
        heads = {"class_head": self.encoder_class_head, "box_head": self.encoder_box_head}
        selected = self.proposals(memory, anchors(maps, whole_extents(maps)), **heads)

        content, references = ops.stop_gradient(selected.embeddings), ops.stop_gradient(selected.boxes)
        if config.learned_content:
            learned = self.content_embedding(ops.arange(config.num_queries))[None]
            content = ops.broadcast_to(learned, ops.shape(content))
        denoising, query_mask, slots = self._denoising(inputs, training), None, 0
        if denoising is not None:
            query_mask, slots = denoising.attention_mask(config.num_queries), ops.shape(denoising.labels)[1]
            noised = self.denoising_embedding(denoising.labels)
            content = ops.concatenate([noised, ops.cast(content, noised.dtype)], axis=1)
            claimed = ops.sigmoid(inverse_sigmoid(denoising.boxes))
            references = ops.concatenate([ops.cast(claimed, references.dtype), references], axis=1)
        decoded = self._decode(
            content,
            query_position=self.query_position,
            references=references,
            memory=memory,
            query_mask=query_mask,
            spatial_shapes=sizes_of(maps),
            class_head=self.class_head,
            box_head=self.box_head,
            earlier_layers=self.auxiliary_outputs,
            depth=None if training else config.inference_layers,
            training=training,
        )

        stages = {f"backbone.stage{index + 1}": feature for index, feature in enumerate(features)}
        stages.update({f"input_projection.level{index}": x for index, x in enumerate(projected)})
        stages.update({f"encoder.aifi{index}": x for index, x in enumerate(encoded.attended)})
        stages.update({f"encoder.level{index}": x for index, x in enumerate(encoded.maps)})
        stages.update({"memory": memory, "proposals.logits": selected.all_logits})
        stages.update({"proposals.embeddings": selected.embeddings, "proposals.boxes": selected.boxes})
        stages.update(self._stages_of(decoded))

        logits, boxes = decoded.logits[:, :, slots:], decoded.boxes[:, :, slots:]
        outputs = {"logits": logits[:, -1], "pred_boxes": boxes[:, -1]}
        if self.auxiliary_outputs:
            outputs.update(aux_logits=logits[:, :-1], aux_boxes=boxes[:, :-1])
        if training and self.auxiliary_outputs:
            encoder = {"logits": selected.logits[:, None], "pred_boxes": selected.boxes[:, None]}
            outputs["prediction_sets"] = {"encoder": encoder}
            self._add_sets(outputs, decoded, denoising, slots)
            if denoising is not None:
                noised = outputs["prediction_sets"]["denoising"]
                stages.update({"denoising.logits": noised["logits"], "denoising.boxes": noised["pred_boxes"]})
        return outputs, stages

    def _decode(self, content: Any, **options: Any) -> Any:
        """Run the decoder on what the queries begin with; the options are those of its `call`."""
        return self.decoder(content, **options)

    def _stages_of(self, decoded: Any) -> dict[str, Any]:
        """Return the decoder's intermediate results by name."""
        stages = {f"decoder.layer{index}": x for index, x in enumerate(decoded.embeddings)}
        return stages | {f"decoder.layer{index}.references": x for index, x in enumerate(decoded.references)}

    def _add_sets(self, outputs: dict[str, Any], decoded: Any, denoising: DenoisingQueries | None, slots: Any) -> None:
        """Add what else is trained to the outputs: what the first slots, of denoising queries, gave."""
        if denoising is None:
            return
        noised = {"logits": decoded.logits[:, :, :slots], "pred_boxes": decoded.boxes[:, :, :slots]}
        queries = ops.broadcast_to(denoising.queries[:, None], ops.shape(noised["logits"])[:3])
        pairs = {"queries": queries, "objects": denoising.objects, "query_mask": denoising.groups >= 0}
        outputs["prediction_sets"]["denoising"] = {**noised, **pairs}

    def _denoising(self, inputs: Any, training: bool) -> DenoisingQueries | None:
        """Return the denoising queries of training; None in inference, and where there are no targets."""
        config = self.config
        targets = inputs.get("targets") if isinstance(inputs, Mapping) else None
        is_learnt = training and self.auxiliary_outputs  # which hands further prediction sets to the loss
        if not is_learnt or targets is None or not config.num_denoising:
            return None
        return denoising_queries(
            targets,
            config.num_classes,
            config.num_denoising,
            seed=self.noise,
            draws=targets.get("draws"),
            label_noise_ratio=config.label_noise_ratio,
            box_noise_scale=config.box_noise_scale,
            absolute_sizes=config.absolute_sizes,
        )
