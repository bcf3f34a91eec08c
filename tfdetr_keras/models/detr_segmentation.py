"""DETR for panoptic and instance segmentation: a mask for each query (arXiv:2005.12872, section 5, figure 8).

Each query attends once more to the encoder's output; its attention, a map for each head, and the image's features are
made finer with the backbone's earlier maps until they are a mask of a quarter of the image's sides.

What all queries share is computed once an image: the features' part of the first convolution, and the backbone's maps
brought to the head's width. Both are sums of the same products as with a copy of the image's features for each query.
Of the queries' own part most is never looked at: training makes masks of matched queries alone, and `segment` and
`detect` those of confident queries, see `tfdetr_keras.inference.forward_pass`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import keras
from keras import initializers, layers, ops

from tfdetr_keras.layers.attention import LARGEST
from tfdetr_keras.layers.resize import resize_nearest
from tfdetr_keras.layers.transformer import NORM_EPSILON
from tfdetr_keras.models.detr import DETR, DETRConfig
from tfdetr_keras.models.segmenter import Segmenter

NORM_GROUPS = 8  # of the mask head's group normalisation
MASK_HEAD_MAPS = 3  # of the backbone, finer than the last, that the mask head looks at


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(DETRConfig):
    """The architecture of a `DETRForSegmentation`: a DETR's, whose parts also are `mask_attention` and `mask_head`.

    Source:
        DETR, section 5 ("DETR for panoptic segmentation").
    """

    def _check(self) -> None:
        super()._check()
        channels = self.d_model + self.encoder_attention_heads
        if channels % NORM_GROUPS:
            raise ValueError(
                f"d_model={self.d_model} and encoder_attention_heads={self.encoder_attention_heads} must add up to a "
                f"multiple of {NORM_GROUPS}, the groups of the mask head's normalisation"
            )
        if len(self.backbone.depths) < 2:
            raise ValueError("masks are made finer step by step: the backbone needs at least two stages")
        if any(width < 1 or width % min(NORM_GROUPS, width) for width in self.mask_head_widths):
            raise ValueError(
                f"d_model={self.d_model} gives the mask head's convolutions the channels {self.mask_head_widths}; "
                f"each must be a multiple of {NORM_GROUPS}, or less than that and not 0"
            )

    @property
    def mask_head_widths(self) -> tuple[int, ...]:
        """Channels after each of the mask head's convolutions but the first: halved with each finer map."""
        maps = min(len(self.backbone.depths) - 1, MASK_HEAD_MAPS)
        return tuple(self.d_model >> halvings for halvings in range(1, maps + 2))

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (*super().own_parts, "mask_attention", "mask_head")


class MaskAttention(layers.Layer):
    """How much each query attends to each position of the image, head by head; no values are summed.

    One softmax runs over all heads and positions of a query together.

    Args:
        d_model: channels.
        heads: that many.
    """

    def __init__(self, d_model: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model, self.heads = d_model, heads
        self.query, self.key = (
            layers.Dense(d_model, kernel_initializer="glorot_uniform", name=name, dtype=self.dtype_policy)
            for name in ("query", "key")
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, …, d_model)`."""
        self.query.build((None, None, self.d_model))
        self.key.build((None, None, self.d_model))

    def call(self, queries: Any, memory: Any, mask: Any) -> Any:
        """Attend.

        Args:
            queries: `(batch, queries, d_model)`.
            memory: `(batch, positions, d_model)`.
            mask: `(batch, positions)` bool, True = image.

        Returns:
            `(batch, queries, positions, heads)` float32; the sum over positions and heads is 1.
        """
        width = self.d_model // self.heads
        batch, count, positions = ops.shape(queries)[0], ops.shape(queries)[1], ops.shape(memory)[1]
        query = ops.reshape(self.query(queries) / math.sqrt(width), (batch, count, self.heads, width))
        key = ops.reshape(self.key(memory), (batch, positions, self.heads, width))
        scores = ops.einsum("bqhc,bphc->bqph", query, key)
        # Padding gets the lowest number there is: what it is compared with may be low itself.
        scores = ops.where(mask[:, None, :, None], ops.cast(scores, "float32"), -LARGEST["float32"])
        weights = ops.softmax(ops.reshape(scores, (batch, count, positions * self.heads)), axis=-1)
        return ops.reshape(weights, (batch, count, positions, self.heads))


class NormalisedConvolution(layers.Layer):
    """A 3×3 convolution, normalisation in groups of channels, and an activation."""

    def __init__(self, inputs: int, channels: int, activation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs, self.channels = inputs, channels
        self.convolution = layers.Conv2D(
            channels,
            3,
            padding="same",
            kernel_initializer=_kaiming_uniform(),
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.group_norm = layers.GroupNormalization(
            min(NORM_GROUPS, channels), epsilon=NORM_EPSILON, name="group_norm", dtype=self.dtype_policy
        )
        self.activation = layers.Activation(activation, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, inputs)`."""
        self.convolution.build((None, None, None, self.inputs))
        self.group_norm.build((None, None, None, self.channels))

    def call(self, x: Any) -> Any:
        """Map `(batch, height, width, inputs)` → `(batch, height, width, channels)`."""
        return self.activation(self.group_norm(self.convolution(x)))

    def of_both(self, shared: Any, own: Any) -> Any:
        """Compute the same of channels that all queries of an image share, followed by channels of their own.

        Args:
            shared: `(batch, height, width, inputs − c)`.
            own: `(batch, queries, height, width, c)`.

        Returns:
            `(batch · queries, height, width, channels)`.
        """
        count = shared.shape[-1]
        kernel, bias = self.convolution.kernel, self.convolution.bias
        dtype = self.compute_dtype
        kernel, bias = ops.cast(kernel, dtype), ops.cast(bias, dtype)
        common = ops.conv(ops.cast(shared, dtype), kernel[:, :, :count], padding="same") + bias
        alone = ops.conv(_by_query(ops.cast(own, dtype)), kernel[:, :, count:], padding="same")
        return self.activation(self.group_norm(_added(alone, common)))


class MaskHead(layers.Layer):
    """A small convolutional network that makes masks of attention maps, finer with each of the backbone's maps.

    Args:
        inputs: channels of the features and of the attention together.
        widths: channels after each convolution but the first.
        map_channels: of the backbone's maps, from the coarsest of the finer ones to the finest.
        activation: by its Keras name.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], map_channels: Sequence[int], activation: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = {"dtype": self.dtype_policy}
        self.inputs, self.widths, self.map_channels = inputs, tuple(widths), tuple(map_channels)
        channels = (inputs, inputs, *self.widths)
        self.convolutions = [
            NormalisedConvolution(before, after, activation, name=f"conv{index + 1}", **options)
            for index, (before, after) in enumerate(itertools.pairwise(channels))
        ]
        self.adapters = [
            layers.Conv2D(width, 1, kernel_initializer=_kaiming_uniform(), name=f"adapter{index + 1}", **options)
            for index, width in enumerate(self.widths[:-1])
        ]
        self.outputs = layers.Conv2D(
            1, 3, padding="same", kernel_initializer=_kaiming_uniform(), name="output", **options
        )

    def build(self, input_shape: Any) -> None:
        """Build for the widths of the configuration."""
        for convolution in self.convolutions:
            convolution.build((None, None, None, convolution.inputs))
        for adapter, channels in zip(self.adapters, self.map_channels, strict=True):
            adapter.build((None, None, None, channels))
        self.outputs.build((None, None, None, self.widths[-1]))

    def call(self, features: Any, attention: Any, maps: list[Any]) -> Any:
        """Make masks.

        Args:
            features: `(batch, h, w, d_model)`, the projected last map of the backbone.
            attention: `(batch, queries, h, w, heads)`.
            maps: the backbone's earlier maps, `(batch, height, width, channels)`, the coarsest first.

        Returns:
            `(batch, queries, height, width)` float32 logits, of the size of the last of the maps.
        """
        batch, count = ops.shape(attention)[:2]
        x = self.convolutions[0].of_both(features, attention)
        x = self.convolutions[1](x)
        for adapter, convolution, finer in zip(self.adapters, self.convolutions[2:], maps, strict=True):
            height, width = ops.shape(finer)[1:3]
            x = convolution(_added(resize_nearest(x, height, width), adapter(finer)))
        height, width = ops.shape(x)[1:3]
        return ops.cast(ops.reshape(self.outputs(x), (batch, count, height, width)), "float32")


def _kaiming_uniform() -> initializers.Initializer:
    """Make an initialiser U(±√(3 / fan-in)), which keeps the variance of what has no activation."""
    return initializers.VarianceScaling(1.0, mode="fan_in", distribution="uniform")


def _by_query(x: Any) -> Any:
    """Map `(batch, queries, height, width, channels)` → `(batch · queries, height, width, channels)`."""
    batch, count, *rest = ops.shape(x)
    return ops.reshape(x, (batch * count, *rest))


def _added(of_queries: Any, of_images: Any) -> Any:
    """Add to each query's map its image's: `(batch · queries, …)` + `(batch, …)`."""
    batch = ops.shape(of_images)[0]
    split = ops.reshape(of_queries, (batch, -1, *ops.shape(of_queries)[1:]))
    return _by_query(split + of_images[:, None])


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DETRForSegmentation(Segmenter, DETR):
    """DETR with a mask for each query: panoptic segmentation, and instance segmentation.

    Inputs and methods are those of `DETR`. Outputs: those of `DETR`, and `"pred_masks": (batch, queries, height / 4,
    width / 4)`, float32 logits over the padded canvas; earlier decoder layers have no masks. `segment` makes panoptic
    segments of them, and `detect` objects with masks; with the outputs at hand, `post_process_panoptic`,
    `post_process_instance`, `post_process_semantic` and `post_process_masks` do. With `training=True` also
    `"mask_inputs"`, from which the loss makes the masks of matched queries alone.

    Targets of `fit` and `evaluate`: those of `DETR` and `"masks": (batch, boxes, height, width)` bool or 0/1, of the
    padded images, as `prepare` makes them of records that were read with masks. `loss_mask` and `loss_dice` are logged,
    too.

    The paper trains boxes first, and then the masks alone, of a frozen detector: `from_detector` starts the second.

    Args:
        config: the architecture.
        criterion: the training loss; the paper's by default.

    Source:
        DETR, section 5 and appendix A.5; the head's widths and normalisation as in the authors' code.
    """

    config_class: ClassVar[type[DETRConfig]] = SegmentationConfig
    presets: ClassVar[Mapping[str, DETRConfig]] = {
        f"{name}-panoptic": SegmentationConfig(num_classes=250, backbone=DETR.presets[name].backbone)
        for name in ("detr-resnet-50", "detr-resnet-50-dc5", "detr-resnet-101")
    }
    published: ClassVar[Mapping[str, str]] = {f"facebook/{name}": name for name in presets}
    title = "DETR for segmentation"
    without_masks = DETR
    masks_come_last = True
    segment_threshold = 0.85
    logged = (*DETR.logged, "loss_mask", "loss_dice")
    config: SegmentationConfig

    @classmethod
    def from_detector(cls, detector: DETR, freeze: bool = True) -> DETRForSegmentation:
        """Make a segmentation model of a detector, with a new mask head: the start of the second stage of training.

        Args:
            detector: a trained DETR, whose weights are copied.
            freeze: whether only the mask head and its attention are trained, as in the paper; otherwise all that the
                detector trains, too.

        Raises:
            ValueError: the detector is of another class, or its widths do not suit a mask head.
        """
        from tfdetr_keras.models.registry import with_masks  # which knows this class

        model = cast(DETRForSegmentation, with_masks(detector, cls))
        if freeze:
            model.freeze(detector.config.parts)
        return model

    def _add_parts(self) -> None:
        config, policy = self.config, self.dtype_policy
        heads, widths = config.encoder_attention_heads, config.mask_head_widths
        self.mask_attention = MaskAttention(config.d_model, heads, name="mask_attention", dtype=policy)
        maps = config.backbone.channels[-2::-1][: len(widths) - 1]
        self.mask_head = MaskHead(
            config.d_model + heads, widths, maps, config.activation_function, name="mask_head", dtype=policy
        )

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        super().build(input_shape)
        self.mask_attention.build((None, None, self.config.d_model))
        self.mask_head.build(None)

    def masks_of(self, mask_inputs: dict[str, Any], queries: Any) -> Any:
        """Make the masks of some queries.

        Args:
            mask_inputs: as the model gives them in training, and `stages` without masks.
            queries: `(batch, n)` int, their numbers.

        Returns:
            `(batch, n, height / 4, width / 4)` float32 logits.
        """
        attention = ops.take_along_axis(mask_inputs["attention"], queries[:, :, None, None, None], axis=1)
        return self.mask_head(mask_inputs["features"], attention, mask_inputs["maps"])

    def _forward(
        self, inputs: Any, training: bool, attention: bool = False, masks: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs, stages = super()._forward(inputs, training, attention)
        batch, height, width = ops.shape(stages["mask"])
        queries = stages[f"decoder.layer{self.config.decoder_layers - 1}"]
        memory = stages[f"encoder.layer{self.config.encoder_layers - 1}"]
        key_mask = ops.reshape(ops.cast(stages["mask"], "bool"), (batch, height * width))
        weights = self.mask_attention(queries, memory, key_mask)
        weights = ops.reshape(weights, (batch, ops.shape(weights)[1], height, width, self.mask_attention.heads))
        features = ops.reshape(stages["projection"], (batch, height, width, self.config.d_model))
        last = len(self.config.backbone.depths)
        maps = [stages[f"backbone.stage{last - 1 - index}"] for index in range(len(self.mask_head.adapters))]
        if masks:
            outputs["pred_masks"] = self.mask_head(features, weights, maps)
        if training or not masks:
            outputs["mask_inputs"] = {"features": features, "attention": weights, "maps": maps}
        return outputs, stages | {"mask_attention": weights}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Compute the criterion's total; in training, the masks of matched queries alone.

        The others have no loss. In a traced step nothing asks for them, so that they are left out of it: a tenth of the
        memory and work of the mask head remains where an image has ten objects and a hundred queries.
        """
        if "mask_inputs" in y_pred:
            masks_of = functools.partial(self.masks_of, y_pred["mask_inputs"])
            y_pred = {name: value for name, value in y_pred.items() if name != "mask_inputs"} | {"pred_masks": masks_of}
        return super().compute_loss(x, y, y_pred, sample_weight, training)
