"""Deformable DETR: attention to a few points of several feature maps, and what it makes possible.

Tokens and queries look at points around a reference instead of at everything, so that maps of a fine resolution can be
afforded. Queries start from a point of their own; with refinement each decoder layer corrects the box of the one before
it, and with two stages the encoder's tokens propose the first boxes (appendix A.4).

Source:
    Zhu et al. 2021, "Deformable DETR: Deformable Transformers for End-to-End Object Detection", arXiv:2010.04159.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backbones.config import whole_number
from tfdetr_keras.backbones.resnet import RESNETS
from tfdetr_keras.layers.deformable_transformer import DeformableDecoded, DeformableDecoder, DeformableEncoder
from tfdetr_keras.layers.heads import PRIOR_PROBABILITY, BoxHead, HeadOfEachLayer, class_head
from tfdetr_keras.layers.levels import (
    NORM_GROUPS,
    Levels,
    anchors,
    extents_of,
    flattened,
    pixel_centres,
    sizes_of,
    valid_ratios,
)
from tfdetr_keras.layers.position import LearnedPositionEmbedding, SinePositionEmbedding
from tfdetr_keras.layers.proposals import Proposals, Proposed
from tfdetr_keras.layers.resize import resize_nearest
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.detr import TINY as DETR_TINY
from tfdetr_keras.models.detr import DETRConfig
from tfdetr_keras.models.inputs import pixels_and_mask

MOST_MAPS = 3  # of the backbone, the coarsest ones; further levels are made of the last
SIZE_LOGIT = -2.0  # of the boxes that queries without proposals start with: 12 % of the image


@dataclasses.dataclass(frozen=True)
class DeformableDETRConfig(DETRConfig):
    """The architecture of a `DeformableDETR`: the fields of a DETR's, and those of its levels, points and boxes.

    Args:
        num_feature_levels: levels that are attended to: the backbone's last three maps, or as many as there are if they
            are fewer, and beyond them coarser ones; with one level the backbone's last map alone.
        encoder_points: points of each level that a head of the encoder looks at.
        decoder_points: points of each level that a head of the decoder looks at.
        with_box_refine: whether each decoder layer refines the boxes of the layer before it, with heads of its own.
        two_stage: whether the queries are proposals of the encoder instead of learned; with `with_box_refine` only.

    Source:
        Deformable DETR, section 5 ("Implementation details") and appendix A.
    """

    num_queries: int = 300
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    num_feature_levels: int = 4
    encoder_points: int = 4
    decoder_points: int = 4
    with_box_refine: bool = False
    two_stage: bool = False

    def _check(self) -> None:
        super()._check()
        for name in ("num_feature_levels", "encoder_points", "decoder_points"):
            whole_number(name, getattr(self, name))
        for name in ("with_box_refine", "two_stage"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.two_stage and not self.with_box_refine:
            raise ValueError("two_stage=True proposes boxes, which are to be refined: say with_box_refine=True, too")
        if self.d_model % NORM_GROUPS:
            raise ValueError(
                f"d_model={self.d_model} must be divisible by {NORM_GROUPS}, the groups in which levels are normalised"
            )

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "focal"

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's maps that become levels."""
        return tuple(self.backbone.channels[-min(MOST_MAPS, self.num_feature_levels) :])

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        of_queries = ("proposals",) if self.two_stage else ("query_embedding", "reference_points")
        of_encoder = ("encoder_class_head", "encoder_box_head") if self.two_stage else ()
        return (
            *("input_projection", "position_embedding", "level_embedding", *of_queries),
            *("encoder", "decoder", "class_head", "box_head", *of_encoder),
        )

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the encoder."""
        options = super().encoder_options
        del options["final_norm"]
        return {**options, "levels": self.num_feature_levels, "points": self.encoder_points}

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        own = {"levels": self.num_feature_levels, "points": self.decoder_points, "refine": self.with_box_refine}
        return {**super().decoder_options, **own}

    @property
    def network(self) -> str:
        """The network in words: what stands behind "a Deformable DETR over"."""
        levels = f"{self.num_feature_levels} level{'s' if self.num_feature_levels > 1 else ''}"
        boxes = ", boxes refined in two stages" if self.two_stage else ", refined boxes" if self.with_box_refine else ""
        return f"{super().network}, {levels}{boxes}"


# Its authors train for 50 epochs and divide the learning rate by ten after 40; steps of offsets and references, which
# move what is looked at, are a tenth of the others (appendix A.4 and their code).
RECIPE: Mapping[str, Any] = {
    "learning_rate": 2e-4,
    "learning_rate_multipliers": {"reference_points": 0.1, "sampling_offsets": 0.1},
}
PUBLISHED = DeformableDETRConfig(recipe=RECIPE)
# The sizes of `detr-tiny`, whose backbone has two maps; a third level is made of the coarser one.
TINY = DeformableDETRConfig(
    **{field.name: getattr(DETR_TINY, field.name) for field in dataclasses.fields(DETR_TINY) if field.name != "recipe"},
    num_feature_levels=3,
    with_box_refine=True,
    recipe={**DETR_TINY.recipe, "learning_rate_multipliers": RECIPE["learning_rate_multipliers"]},
)


def _published(dilation: bool = False, **fields: Any) -> DeformableDETRConfig:
    backbone = dataclasses.replace(RESNETS["resnet-50"], dilation=dilation)
    return dataclasses.replace(PUBLISHED, backbone=backbone, **fields)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DeformableDETR(Detector):
    """DETR with deformable attention to several feature maps, which trains ten times faster and sees small objects.

    Inputs, targets and methods are those of `DETR`. Outputs: `{"logits": (batch, queries, num_classes), each class an
    independent sigmoid, "pred_boxes": (batch, queries, 4) cxcywh in [0, 1] of the unpadded image}`, float32, and
    `"aux_logits"` and `"aux_boxes"` as there. One query may so speak for several classes.

    With two stages, training trains the encoder's proposals, too: of all tokens, each a box of an object or none,
    whatever its class. They are among the outputs of training alone, as the prediction set `encoder`.

    Stages: `backbone.stage1` … (batch, h, w, channels); of all levels' tokens `mask` (batch, tokens), `position` and
    `projection` (batch, tokens, d_model), `encoder.layer0` …; with two stages `proposals.logits` and `proposals.boxes`
    (batch, tokens, …); `decoder.layer0` … (batch, queries, d_model), and `decoder.layer0.references` … (batch, queries,
    2 or 4), from which the layer's boxes are told.

    Args:
        config: the architecture.
        criterion: the training loss; the paper's by default: a focal loss of weight 2, and a matching with its cost.

    Source:
        Zhu et al. 2021, "Deformable DETR: Deformable Transformers for End-to-End Object Detection", arXiv:2010.04159.
    """

    config_class: ClassVar[type[DeformableDETRConfig]] = DeformableDETRConfig
    presets: ClassVar[Mapping[str, DeformableDETRConfig]] = {
        "deformable-detr-single-scale": _published(num_feature_levels=1),
        "deformable-detr-single-scale-dc5": _published(dilation=True, num_feature_levels=1),
        "deformable-detr": _published(),
        "deformable-detr-with-box-refine": _published(with_box_refine=True),
        "deformable-detr-with-box-refine-two-stage": _published(with_box_refine=True, two_stage=True),
        "deformable-detr-tiny": TINY,
    }
    published: ClassVar[Mapping[str, str]] = {
        f"SenseTime/{name}": name
        for name in (
            *("deformable-detr-single-scale", "deformable-detr-single-scale-dc5", "deformable-detr"),
            *("deformable-detr-with-box-refine", "deformable-detr-with-box-refine-two-stage"),
        )
    }
    title = "Deformable DETR"
    config: DeformableDETRConfig

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the authors' loss."""
        return SetCriterion(classification="focal", cost_class=2.0, class_loss_coefficient=2.0)

    def _make_parts(self) -> None:
        config, policy = self.config, self.dtype_policy
        width = config.d_model
        self.backbone = config.backbone.make(name="backbone", dtype=policy)
        self.input_projection = Levels(
            config.map_channels, config.num_feature_levels, width, name="input_projection", dtype=policy
        )
        if config.position_embedding == "sine":
            self.position_embedding = SinePositionEmbedding(
                width, centred=True, name="position_embedding", dtype=policy
            )
        else:
            self.position_embedding = LearnedPositionEmbedding(width, name="position_embedding", dtype=policy)
        self.level_embedding = self._embedding(config.num_feature_levels, width, "level_embedding")
        self.encoder = DeformableEncoder(**config.encoder_options, name="encoder", dtype=policy)
        if config.two_stage:
            self.proposals = Proposals(width, config.num_queries, name="proposals", dtype=policy)
            self.encoder_class_head = self._class_head("encoder_class_head")
            self.encoder_box_head = self._box_head("encoder_box_head")
        else:
            # Of each query its position, then what it begins with.
            self.query_embedding = self._embedding(config.num_queries, 2 * width, "query_embedding")
            self.reference_points = layers.Dense(2, name="reference_points", dtype="float32")
        self.decoder = DeformableDecoder(**config.decoder_options, name="decoder", dtype=policy)
        depth = config.decoder_layers if config.with_box_refine else 1
        names = [f"layer{index}" for index in range(depth)]
        # With refinement the first layer finds the size, which the others correct.
        sizes = [SIZE_LOGIT if index == 0 and not config.two_stage else 0.0 for index in range(depth)]
        box_heads = [self._box_head(name, size) for name, size in zip(names, sizes, strict=True)]
        self.class_head = HeadOfEachLayer([self._class_head(name) for name in names], width, name="class_head")
        self.box_head = HeadOfEachLayer(box_heads, width, name="box_head")

    def _embedding(self, rows: int, width: int, name: str) -> layers.Embedding:
        start = initializers.RandomNormal(stddev=1.0)
        return layers.Embedding(rows, width, embeddings_initializer=start, name=name, dtype=self.dtype_policy)

    # The heads stay in float32 under mixed precision: boxes need more than bfloat16's three digits.
    def _class_head(self, name: str) -> layers.Dense:
        return class_head(self.config.d_model, self.config.num_logits, PRIOR_PROBABILITY, name=name, dtype="float32")

    def _box_head(self, name: str, size_logit: float = 0.0) -> BoxHead:
        return BoxHead(self.config.d_model, zero_output=True, size_logit=size_logit, name=name, dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        sequence = (None, None, self.config.d_model)
        self.backbone.build((None, None, None, 3))
        self.position_embedding.build((None, None, None))
        for part in (self.input_projection, self.level_embedding, self.encoder):
            part.build(sequence)
        of_encoder = ("proposals", "encoder_class_head", "encoder_box_head")
        for name in of_encoder if self.config.two_stage else ("query_embedding", "reference_points"):
            getattr(self, name).build(sequence)
        for part in (self.decoder, self.class_head, self.box_head):
            part.build(sequence)

    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        pixels, pixel_mask = pixels_and_mask(inputs)
        features = self.backbone(pixels, training=training)
        levels = self.input_projection(features[-len(self.config.map_channels) :])
        masks = [resize_nearest(pixel_mask, *ops.shape(level)[1:3]) for level in levels]
        projection, mask, position = flattened(levels), ops.cast(flattened(masks), "bool"), self._position(masks)
        sizes, extents = sizes_of(levels), extents_of(masks)
        ratios = valid_ratios(levels, extents)

        references = pixel_centres(levels, extents)[:, :, None] * ratios[:, None]
        encoded = self.encoder(projection, position, references, mask, spatial_shapes=sizes, training=training)
        proposed = None
        if self.config.two_stage:
            heads = {"class_head": self.encoder_class_head, "box_head": self.encoder_box_head}
            proposed = self.proposals(encoded[-1], mask, anchors(levels, extents), **heads)
            queries = proposed.content, proposed.position, proposed.references
        else:
            queries = self._learned_queries(ops.shape(pixels)[0])
        decoded = self.decoder(
            *queries,
            encoded[-1],
            mask,
            ratios,
            spatial_shapes=sizes,
            class_head=self.class_head,
            box_head=self.box_head,
            earlier_layers=self.auxiliary_outputs,
            training=training,
        )

        stages = {f"backbone.stage{index + 1}": feature for index, feature in enumerate(features)}
        stages.update(mask=mask, position=position, projection=projection)
        stages.update({f"encoder.layer{index}": x for index, x in enumerate(encoded)})
        if proposed is not None:
            stages.update({"proposals.logits": proposed.logits, "proposals.boxes": proposed.boxes})
        stages.update({f"decoder.layer{index}": x for index, x in enumerate(decoded.embeddings)})
        stages.update({f"decoder.layer{index}.references": x for index, x in enumerate(decoded.references)})
        return self._outputs(decoded, proposed if training else None), stages

    def stages(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run the model and hand out every intermediate result by name, see `Detector.stages`.

        Tokens of the padding, which nothing reads, are 0.
        """
        found = super().stages(inputs, *args, **kwargs)
        for name, tokens in found.items():
            if name in ("position", "projection") or name.startswith("encoder."):
                found[name] = ops.where(found["mask"][..., None], tokens, ops.zeros((), tokens.dtype))
        return found

    def _position(self, masks: list[Any]) -> Any:
        """Return the position of each token on its level, and the level's own embedding, `(batch, tokens, d_model)`."""
        of_levels = self.level_embedding(ops.arange(len(masks)))
        return flattened([self.position_embedding(mask) + of_levels[level] for level, mask in enumerate(masks)])

    def _learned_queries(self, batch: Any) -> tuple[Any, Any, Any]:
        """Return what the queries begin with, their positions, and their reference points."""
        shape = (batch, self.config.num_queries, self.config.d_model)
        position, content = ops.split(self.query_embedding(ops.arange(self.config.num_queries)), 2, axis=-1)
        position, content = (ops.broadcast_to(x[None], shape) for x in (position, content))
        return content, position, ops.sigmoid(self.reference_points(position))

    def _outputs(self, decoded: DeformableDecoded, proposed: Proposed | None) -> dict[str, Any]:
        outputs = {"logits": decoded.logits[:, -1], "pred_boxes": decoded.boxes[:, -1]}
        if self.auxiliary_outputs:
            outputs.update(aux_logits=decoded.logits[:, :-1], aux_boxes=decoded.boxes[:, :-1])
        if proposed is not None:
            # Whether there is an object at all is the first class there, of every object.
            labels = ops.zeros((1, 1), "int32")
            encoder = {"logits": proposed.logits[:, None], "pred_boxes": proposed.boxes[:, None], "labels": labels}
            outputs["prediction_sets"] = {"encoder": encoder}
        return outputs
