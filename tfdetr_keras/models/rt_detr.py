"""RT-DETR: a hybrid encoder of several maps, its best tokens as queries, and boxes refined layer by layer.

Source:
    Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import initializers, layers, ops

from tfdetr_keras.layers.class_embedding import ClassEmbedding
from tfdetr_keras.layers.deformable_transformer import DeformableDecoder
from tfdetr_keras.layers.heads import PRIOR_PROBABILITY, BoxHead, HeadOfEachLayer, class_head, inverse_sigmoid
from tfdetr_keras.layers.hybrid_encoder import HybridEncoder, ProjectedMaps
from tfdetr_keras.layers.levels import anchors, flattened, sizes_of, whole_extents
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.layers.proposals import TokenSelection
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.losses.denoising import DenoisingQueries, denoising_queries
from tfdetr_keras.models.detector import INFERENCE_GRAPHS, Detector
from tfdetr_keras.models.inputs import pixels_without_padding
from tfdetr_keras.models.rt_detr_config import RECIPES, SIZES, TINY, RTDETRConfig


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
