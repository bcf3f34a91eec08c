"""DETR: backbone, transformer and heads as one Keras model with its own loss (DETR, section 3, figure 2)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backend.replicas import number_of_replicas
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.classification import classification_named
from tfdetr_keras.models.backbone import ResNet
from tfdetr_keras.models.class_names import ClassNames, names_by_id
from tfdetr_keras.models.config import DETRConfig
from tfdetr_keras.models.fit_data import checked, is_tf_dataset
from tfdetr_keras.models.folding import folded_values
from tfdetr_keras.models.mlp import MLP
from tfdetr_keras.models.nearest import resize_nearest
from tfdetr_keras.models.own_loss import OwnLossModel
from tfdetr_keras.models.position import LearnedPositionEmbedding, SinePositionEmbedding
from tfdetr_keras.models.presets import PRESET_CRITERIA, PRESETS
from tfdetr_keras.models.quantization import (
    Filters,
    check_mode,
    check_trainable,
    describe_quantization,
    is_integer,
    mode_of,
    quantize_as,
    selects,
    without_full_collections,
)
from tfdetr_keras.models.recipe import RECIPE
from tfdetr_keras.models.serialized import criterion_of
from tfdetr_keras.models.spelling import did_you_mean
from tfdetr_keras.models.transformer import Decoder, Encoder, linear_initializers
from tfdetr_keras.preprocessing import Preprocessing, SizeRule

if TYPE_CHECKING:
    from typing import Self

INFERENCE_GRAPHS = "_inference_graphs"  # where `tfdetr_keras.inference.forward_pass` keeps what it compiled


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
class DETR(OwnLossModel):
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

    config_class: type[DETRConfig] = DETRConfig
    decoder_class: type[Decoder] = Decoder
    title = "DETR"  # what people call it
    has_masks = False  # whether its outputs have a mask for each query
    logged: tuple[str, ...] = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
    loss_advice = "the loss is the model's own: model.criterion = td.SetCriterion(…) changes it"

    def __init__(self, config: DETRConfig, criterion: SetCriterion | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("name", "detr")
        super().__init__(**kwargs)
        if type(config) is not self.config_class:
            raise ValueError(
                f"{type(self).__name__} is made from a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        policy: Any = self.dtype_policy
        self.config = config
        self.criterion = criterion or self.default_criterion()
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
        self.loss_trackers = [keras.metrics.Mean(name=name) for name in self.logged]
        self._add_parts()
        self.build((None, None, None, 3))
        self.freeze(config.frozen)

    @staticmethod
    def default_criterion() -> SetCriterion:
        """The loss that the paper trains with."""
        return SetCriterion()

    def _new_heads(self) -> tuple[Any, Any]:
        """The class head and the box head."""
        width = self.config.d_model
        start = linear_initializers(width)
        class_head = layers.Dense(self.config.num_logits, name="class_head", dtype="float32", **start)
        return class_head, BoxHead(width, name="box_head", dtype="float32")

    def _add_parts(self) -> None:
        """Makes what a relative of DETR has beyond it."""

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

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """A model of a named architecture with random weights.

        Args:
            name: one of `tfdetr_keras.PRESETS` that is of this class, e.g. `"detr-resnet-50"`.
            **changes: fields of the configuration that differ from the preset, e.g. `num_classes=3`.

        Raises:
            ValueError: an unknown name, or a field that does not exist or does not fit.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
        preset = PRESETS[name]
        if type(preset) is not cls.config_class:
            raise ValueError(f"the preset {name!r} is no {cls.__name__}, but of the family: td.from_preset makes it")
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(preset)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a field of {cls.config_class.__name__}")
        if "num_classes" in changes:
            changes.setdefault("id2label", None)
        elif changes.get("id2label") is not None:
            changes["num_classes"] = len(names_by_id(changes["id2label"]))
        return cls(dataclasses.replace(preset, **changes), PRESET_CRITERIA.get(name))

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        num_classes: int | None = None,
        id2label: ClassNames | None = None,
        num_queries: int | None = None,
        keep_head: bool | None = None,
        revision: str | None = None,
    ) -> Self:
        """A model of this class with the weights of a checkpoint, read without PyTorch unless it is a `.pth`.

        `td.from_pretrained` picks the class instead. A `DETR` of a segmentation checkpoint leaves its mask head out, a
        `DETRForSegmentation` of a detector starts with a fresh one.

        The rows of the class head are kept by the names of their classes, and so is that of "no object"; the rows of
        classes that the checkpoint does not know are drawn anew. Where its classes have no names and are as many, all
        rows stay. A line of the log says what was kept.

        Args:
            source: a hub id, a folder with `config.json` and weights (`model.safetensors` or `pytorch_model.bin`, whole
                or in shards), a `.safetensors`, a `.pth` or Lightning's `.ckpt` (all also of a backbone alone), a
                `.keras` file, the folder of a training run, or `"detr-tiny"`, a small model trained on drawn shapes
                that comes with the package.
            num_classes: number of classes without names; another one than the checkpoint's makes them all new.
            id2label: names of the classes, as `{id: name}` or a list; implies `num_classes`.
            num_queries: fewer keep the first query embeddings, more add fresh ones.
            keep_head: True keeps the class head by position, whatever its classes are called; False draws all of it
                anew.
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: a source that is missing, damaged, of no known naming, of another class of the family, or whose
                tensors and configuration do not fit each other, where each tensor concerned is named; names that are no
                names; `keep_head=True` for another number of classes.
        """
        from port_weights import load_model  # the upper floor, called only when weights are wanted

        return load_model(
            source,
            num_classes=num_classes,
            id2label=id2label,
            num_queries=num_queries,
            keep_head=keep_head,
            revision=revision,
            model_class=cls,
        )

    @property
    def id2label(self) -> Mapping[int, str]:
        """Class id → class name."""
        return self.config.names

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the model's input; what detects, measures, trains and exports goes by it."""
        return self.config.preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self.config = dataclasses.replace(self.config, preprocessing=value)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The settings that the model's authors train with, by their names in `tfdetr_keras.training.Settings`."""
        return MappingProxyType({**RECIPE, **self.config.recipe})

    @property
    def auxiliary_outputs(self) -> bool:
        """Whether the outputs of the earlier decoder layers are returned, and so trained, too."""
        return self.config.auxiliary_outputs

    @auxiliary_outputs.setter
    def auxiliary_outputs(self, value: bool) -> None:
        self.config = dataclasses.replace(self.config, auxiliary_outputs=bool(value))
        # The graphs traced by fit, evaluate and predict have the old outputs built in.
        self.train_function = self.test_function = self.predict_function = None

    def freeze(self, parts: str | Sequence[str] = ()) -> None:
        """Leaves some parts of the model as they are in training, and trains all others; call it before `compile`.

        What is frozen is saved with the model. Frozen batch normalisation (`batch_norm="frozen"`) is never trained.

        Args:
            parts: names out of `config.parts`, or a text like `"backbone"` or `"stem+stage1"`; nothing by default.

        Raises:
            ValueError: a part that the model does not have.
        """
        if parts != self.config.frozen:
            self.config = dataclasses.replace(self.config, frozen=parts)
        trunk = dict(zip(self.config.backbone.parts, (self.backbone.stem, *self.backbone.stages), strict=True))
        layers_of: dict[str, Any] = {
            name: trunk[name] if name in trunk else getattr(self, name) for name in self.config.parts
        }
        for layer in layers_of.values():
            layer.trainable = True
        for name in self.config.frozen:
            layers_of[name].trainable = False
        self.train_function = None  # its graph has the variables built in

    def fold(self) -> Self:
        """A copy for inference, with batch normalisation folded into the convolutions: same outputs, in less time.

        The copy can be saved and exported as any model. Go on training with the original: in the copy nothing keeps the
        trunk's activations in their range.

        Raises:
            ValueError: the model is folded already.
        """
        if self.config.backbone.batch_norm == "folded":
            raise ValueError("this model's batch normalisation is folded already")
        backbone = dataclasses.replace(self.config.backbone, batch_norm="folded")
        folded = type(self)(
            dataclasses.replace(self.config, backbone=backbone), self.criterion, name=self.name, dtype=self.dtype_policy
        )
        quantize_as(folded, describe_quantization(self))
        values = folded_values({variable.path: ops.convert_to_numpy(variable) for variable in self.weights})
        for variable in folded.weights:
            variable.assign(values[variable.path])
        return folded

    def quantize(self, mode: Any = None, config: Any = None, filters: Filters = None, **kwargs: Any) -> None:
        """Quantise the transformer, the embeddings and the heads in place, as Keras' `quantize` does.

        Convolutions, normalisations and position encodings stay in float, and layers that are quantised already as they
        are. A quantised model detects, and can be saved, loaded and folded; one of integers cannot be trained any more,
        nor be ported to PyTorch: keep the original. It has no optimizer, whose moments would fill its file.

        Args:
            mode: `"int8"`, `"int4"`, or `"float8"`, with which the model can be trained.
            config: a `keras.quantizers.QuantizationConfig` in place of the mode's own.
            filters: which layers are quantised: regular expressions searched for in their names, or a function of a
                layer, e.g. `lambda layer: "head" not in layer.path`; all that can be by default.
            **kwargs: see `keras.Model.quantize`.

        Raises:
            ValueError: another mode, or no layer that the filters let through and that is not quantised already.
        """
        check_mode(mode)
        is_selected = selects(filters, mode)
        if not any(is_selected(layer) for layer in self._flatten_layers()):
            rest = f" that are not yet ({was})" if (was := mode_of(self)) else ""
            raise ValueError(f"filters={filters!r} selects none of the layers that can be quantised{rest}")
        with without_full_collections():
            super().quantize(mode, config=config, filters=is_selected, **kwargs)
        self.__dict__.pop(INFERENCE_GRAPHS, None)  # they have the old variables
        if is_integer(self):
            self.optimizer = None

    def detect(
        self,
        images: Any,
        size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        urls: bool = False,
        attention: bool = False,
        pad_to: tuple[int, int] | None = None,
        size_rule: SizeRule | None = None,
        masks: bool = True,
        preprocessing: Preprocessing | None = None,
    ) -> Any:
        """Detects objects in images as people have them: paths, arrays, PIL images, one or a list.

        Args:
            images: see `tfdetr_keras.inference.detect_images`.
            size: of images, in place of that of the preprocessing, see `td.Preprocessing`.
            threshold: only detections with a higher score are given.
            urls: whether text that begins with http:// or https:// is fetched.
            attention: whether the decoder's attention is wanted, too, for `tfdetr_keras.visualize.draw_attention`.
            pad_to: (height, width) of a fixed canvas, pixels, in place of that of the preprocessing.
            size_rule: by which images are resized, in place of that of the preprocessing.
            masks: whether masks are given, where the model has them: each takes a byte per pixel of the image.
            preprocessing: how images are prepared; by default the model's own.

        Returns:
            `td.Detections`, of one image or a list of them: scores, boxes in pixels, names.

        Raises:
            ValueError: something is no image, or cannot be read.
        """
        from tfdetr_keras.inference.detection import detect_images  # an upper floor, called only when it is wanted

        return detect_images(self, images, size, threshold, urls, attention, pad_to, size_rule, masks, preprocessing)

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        """Detects: see the class for inputs and outputs."""
        return self._forward(inputs, training)[0]

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

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The criterion's total, called by Keras; keeps the parts for the logs."""
        if sample_weight is not None:
            raise ValueError("DETR's loss takes no sample_weight: give fit a dataset of (inputs, targets)")
        if classification_named(self.criterion.classification) != classification_named(self.config.classification):
            raise ValueError(
                f"{type(self).__name__}'s classes are a {self.config.classification!r} classification, but its "
                f"criterion has classification={self.criterion.classification!r}"
            )
        losses = self.criterion(y_pred, y)
        # By images, as Keras weighs `loss` itself. With a dataset of unknown length Keras starts one step too many, in
        # which everything runs that does not depend on the data: the weight has to look at it, or it would count.
        images = ops.shape(y_pred["logits"])[0]
        weight = ops.where(ops.isnan(losses["loss"]), images, images)
        for tracker in self.loss_trackers:
            # Each replica has its share of a loss; the metric averages over replicas.
            tracker.update_state(losses[tracker.name] * number_of_replicas(), sample_weight=weight)
        return losses["loss"]

    def fit(self, x: Any = None, y: Any = None, *args: Any, validation_data: Any = None, **kwargs: Any) -> Any:
        """Keras' `fit`; bad inputs or targets end it with a `ValueError` that names the image."""
        if is_tf_dataset(x):
            kwargs.setdefault("shuffle", False)  # Keras cannot shuffle a dataset, and would warn that it does not
        with self._checked(x, y) as x, self._checked(validation_data) as validation_data:
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' `evaluate`, with the checks of `fit`."""
        with self._checked(x, y) as x:
            return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' `train_on_batch`, with the checks of `fit`."""
        with self._checked(x, y) as x:
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' `test_on_batch`, with the checks of `fit`."""
        with self._checked(x, y) as x:
            return super().test_on_batch(x, y, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' own, called by `fit`; the optimizer has its variables by then.

        On TensorFlow Keras would make them inside the step, which is then traced twice.

        Raises:
            ValueError: the model is quantised to integers, which cannot be trained.
        """
        check_trainable(self)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def _checked(self, x: Any, y: Any = None) -> contextlib.AbstractContextManager[Any]:
        return checked(x, y, num_classes=self.config.num_classes)

    def get_compile_config(self) -> Any:
        """How the model was compiled, for Keras to save it; None where it cannot be trained."""
        return None if is_integer(self) else super().get_compile_config()

    def get_config(self) -> dict[str, Any]:
        """Architecture, criterion, dtype policy and quantisation, from which `from_config` makes the same model."""
        quantization = describe_quantization(self)
        return {
            "config": self.config.to_dict(),
            "criterion": keras.saving.serialize_keras_object(self.criterion),
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **({"quantization": quantization} if quantization else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """The model that `get_config` described, with fresh weights."""
        model = cls(
            cls.config_class(**config["config"]),
            criterion_of(config["criterion"], cls.__name__),
            name=config["name"],
            dtype=keras.saving.deserialize_keras_object(config["dtype"]),
        )
        quantize_as(model, config.get("quantization", ()))
        return model


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
