"""What every detector of this package is to Keras: its own loss, its checks, its files; the network is in its own file.

A member of the family derives from `Detector` and says what it is made of: `_make_parts` and `build` make its layers,
`_forward` computes, and the parts that its configuration names are attributes of those names.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import keras
from keras import ops

from tfdetr_keras.backbones.folding import folded_values
from tfdetr_keras.backend.replicas import number_of_replicas
from tfdetr_keras.backend.serialized import criterion_of
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.classification import classification_named
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.fit_data import checked, is_tf_dataset
from tfdetr_keras.models.own_loss import OwnLossModel
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
from tfdetr_keras.models.registry import model_class, presets
from tfdetr_keras.names.classes import ClassNames, names_by_id
from tfdetr_keras.names.spelling import did_you_mean
from tfdetr_keras.preprocessing import Preprocessing, SizeRule

if TYPE_CHECKING:
    from typing import Self

INFERENCE_GRAPHS = "_inference_graphs"  # where `tfdetr_keras.inference.forward_pass` keeps what it compiled


class Detector(OwnLossModel):
    """A Keras model that finds objects.

    Args:
        config: the architecture.
        criterion: the training loss; that of the class's authors by default.
        **kwargs: `name` and `dtype`, as for `keras.Model`.

    Raises:
        ValueError: a configuration of another class.
    """

    config_class: ClassVar[type[DetectorConfig]]
    presets: ClassVar[Mapping[str, Any]] = {}  # architectures by name
    published: ClassVar[Mapping[str, str]] = {}  # checkpoints on the hub, and the preset of each
    title = "detector"  # what people call it
    has_masks = False  # whether its outputs have a mask for each query
    without_masks: ClassVar[type[Detector] | None] = None  # of a class with masks: that of its boxes
    masks_come_last: ClassVar[bool] = False  # of a class with masks: whether they are trained after boxes, alone
    wants_targets = False  # whether `fit` gives the targets to the forward pass, too, as `inputs["targets"]`
    logged: tuple[str, ...] = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
    logged_in_training: ClassVar[tuple[str, ...]] = ()  # those of them that evaluation does not have
    loss_advice = "the loss is the model's own: model.criterion = td.SetCriterion(…) changes it"
    backbone: Any

    def __init__(self, config: DetectorConfig, criterion: SetCriterion | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("name", "detr")
        # Or boxes among the inputs would be rounded to the policy's dtype; layers still round what they are given.
        super().__init__(**{"autocast": not self.wants_targets, **kwargs})
        if type(config) is not self.config_class:
            raise ValueError(
                f"{type(self).__name__} is made from a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        self.config: Any = config
        self.criterion = criterion or self.default_criterion()
        self._make_parts()
        self.loss_trackers = [keras.metrics.Mean(name=name) for name in self.logged]
        self._add_parts()
        self.build((None, None, None, 3))
        self.freeze(config.frozen)

    def weights_by_path(self) -> dict[str, Any]:
        """Return the weights by path, without the model's own name."""
        return {variable.path.split("/", 1)[1]: variable for variable in self.weights}

    @classmethod
    def criterion_of(cls, criterion: SetCriterion) -> SetCriterion:
        """Return the criterion of a checkpoint, which may be of another class, as this class needs it."""
        return criterion

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the loss that the paper trains with."""
        return SetCriterion()

    def normalized_parts(self, config: Any) -> dict[str, Any]:
        """Make the parts that have batch normalisation, by their names; they are yet to be built.

        Args:
            config: the model's own, or a folded one.
        """
        return {"backbone": config.backbone.make(name="backbone", dtype=self.dtype_policy)}

    @abc.abstractmethod
    def _make_parts(self) -> None:
        """Make the layers, as attributes of the names that `config.parts` has, of the model's dtype policy."""

    def _add_parts(self) -> None:
        """Make what a class derived from another member has beyond it."""

    @abc.abstractmethod
    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute the outputs, and every intermediate result by name."""

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        """Detect: see the class for inputs and outputs."""
        return self._forward(inputs, training)[0]

    def stages(
        self,
        inputs: Any,
        attention: bool = False,
        training: bool = False,
        targets: Any = None,
        denoising: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run the model and hand out every intermediate result by name, in the order of computation.

        Args:
            inputs: as for the model.
            attention: whether the decoder's attention to the image is wanted, too.
            training: whether the model runs as in training.
            targets: `labels` and `boxes`, for a model that trains with them.
            denoising: the random numbers of its denoising queries, see `td.losses.denoising_queries`; drawn by default.

        Returns:
            The stages by the names that the class lists, and the model's outputs.
        """
        if targets is not None:
            given = inputs if isinstance(inputs, Mapping) else {"pixel_values": inputs}
            inputs = {**given, "targets": targets if denoising is None else {**targets, "draws": denoising}}
        outputs, stages = self._forward(inputs, training=training, attention=attention)
        return {**stages, **outputs}

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Make a model of a named architecture with random weights.

        Args:
            name: one of `tfdetr_keras.PRESETS` that is of this class, e.g. `"detr-resnet-50"`.
            **changes: fields of the configuration that differ from the preset, e.g. `num_classes=3`.

        Raises:
            ValueError: an unknown name, or a field that does not exist or does not fit.
        """
        known = presets()
        if name not in known:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}")
        preset = known[name]
        if type(preset) is not cls.config_class:
            owner = model_class(preset).__name__
            raise ValueError(f"preset {name!r} is a {owner}, not a {cls.__name__}: use td.from_preset({name!r})")
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(preset)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a field of {cls.config_class.__name__}")
        if "num_classes" in changes:
            changes.setdefault("id2label", None)
        elif changes.get("id2label") is not None:
            changes["num_classes"] = len(names_by_id(changes["id2label"]))
        return cls(dataclasses.replace(preset, **changes))

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
        """Make a model of this class with the weights of a checkpoint, read without PyTorch unless it is a `.pth`.

        `td.from_pretrained` picks the class instead. A `DETR` of a segmentation checkpoint leaves its mask head out, a
        `DETRForSegmentation` of a detector starts with a fresh one.

        The rows of the class head are kept by the names of their classes, and so is that of "no object"; the rows of
        classes that the checkpoint does not know are drawn anew. Where its classes have no names and are as many, all
        rows stay. A line of the log says what was kept.

        Args:
            source: a hub id, a folder with `config.json` and weights (`model.safetensors` or `pytorch_model.bin`, whole
                or in shards), a `.safetensors`, a `.pth` or Lightning's `.ckpt` (all also of a backbone alone), a
                `.keras` file, the folder of a training run, or `"detr-tiny"`, `"rt-detr-tiny"`,
                `"rf-detr-tiny"` or `"d-fine-tiny"`, small models trained on drawn shapes that come with the package.
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
        from tfdetr_keras.models.pretrained import load_model  # which knows this class

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

    @property
    def recompute(self) -> bool:
        """Whether the layers' results are computed again in the backward pass instead of being kept in memory.

        Training then takes about a quarter more time. Set it before training; it is not saved with the model.
        """
        return any(getattr(layer, "recompute", False) for layer in self._flatten_layers(include_self=False))

    @recompute.setter
    def recompute(self, value: bool) -> None:
        for layer in self._flatten_layers(include_self=False):
            if isinstance(getattr(layer, "recompute", None), bool):  # deformable attention decides by itself
                layer.recompute = bool(value)
        self.train_function = None  # its graph has it built in

    def freeze(self, parts: str | Sequence[str] = ()) -> None:
        """Leave some parts of the model as they are in training, and train all others; call it before `compile`.

        What is frozen is saved with the model. Frozen batch normalisation (`batch_norm="frozen"`) is never trained.

        Args:
            parts: names out of `config.parts`, or a text like `"backbone"` or `"stem+stage1"`; nothing by default.

        Raises:
            ValueError: a part that the model does not have.
        """
        if parts != self.config.frozen:
            self.config = dataclasses.replace(self.config, frozen=parts)
        inside: Mapping[str, Any] = self.backbone.parts
        layers_of = {name: inside[name] if name in inside else getattr(self, name) for name in self.config.parts}
        for layer in layers_of.values():
            layer.trainable = True
        for name in self.config.frozen:
            layers_of[name].trainable = False
        self.train_function = None  # its graph has the variables built in

    def fold(self) -> Self:
        """Make a copy for inference, with batch normalisation folded into the convolutions: same outputs, less time.

        Groups of queries that training alone uses are left out, too (LW-DETR, RF-DETR). The copy can be saved and
        exported as any model. Go on training with the original: in the copy nothing keeps the backbone's activations in
        their range.

        Raises:
            ValueError: the model is folded already.
        """
        if self.config.folded() == self.config:
            raise ValueError(
                "this model has no batch normalisation and no groups of queries that inference does without, or it is "
                "folded already"
            )
        folded = type(self)(self.config.folded(), self.criterion, name=self.name, dtype=self.dtype_policy)
        quantize_as(folded, describe_quantization(self, within=folded))
        values = folded_values({variable.path: ops.convert_to_numpy(variable) for variable in self.weights})
        for variable in folded.weights:
            value = values[variable.path]  # of the embeddings of several groups the first group's are kept
            variable.assign(value if value.shape == tuple(variable.shape) else value[: variable.shape[0]])
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
        threshold: float | Mapping[str, float] = 0.5,
        urls: bool = False,
        attention: bool = False,
        pad_to: tuple[int, int] | None = None,
        size_rule: SizeRule | None = None,
        masks: bool = True,
        preprocessing: Preprocessing | None = None,
    ) -> Any:
        """Detect objects in images as people have them: paths, arrays, PIL images, one or a list.

        Args:
            images: see `tfdetr_keras.inference.detect_images`.
            size: of images, in place of that of the preprocessing, see `td.Preprocessing`.
            threshold: only detections with a higher score are given; one number for all classes, or one by the name of
                each class, and 0.5 for those that are not named.
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

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Compute the criterion's total, for Keras, and keep the parts for the logs."""
        if sample_weight is not None:
            raise ValueError("DETR's loss takes no sample_weight: give fit a dataset of (inputs, targets)")
        if not classification_named(self.criterion.classification).answers_as(self.config.classification):
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
            if tracker.name in losses:  # further prediction sets are there in training alone
                tracker.update_state(losses[tracker.name] * number_of_replicas(), sample_weight=weight)
        return losses["loss"]

    def fit(self, x: Any = None, y: Any = None, *args: Any, validation_data: Any = None, **kwargs: Any) -> Any:
        """Keras' `fit`; bad inputs or targets end it with a `ValueError` that names the image."""
        if is_tf_dataset(x):
            kwargs.setdefault("shuffle", False)  # Keras cannot shuffle a dataset, and would warn that it does not
        with self._checked(x, y, True) as x, self._checked(validation_data) as validation_data:
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' `evaluate`, with the checks of `fit`."""
        with self._checked(x, y) as x:
            found = super().evaluate(x, y, *args, **kwargs)
        if not isinstance(found, Mapping):
            return found
        return {name: value for name, value in found.items() if name not in self.logged_in_training}

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' `predict`; padding ends it with a `ValueError` where the model knows none."""
        if self.config.knows_padding:
            return super().predict(x, *args, **kwargs)
        with self._checked(x) as x:
            return super().predict(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Keras' `predict_on_batch`, with the check of `predict`."""
        if self.config.knows_padding:
            return super().predict_on_batch(x)
        with self._checked(x) as x:
            return super().predict_on_batch(x)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras' `train_on_batch`, with the checks of `fit`."""
        with self._checked(x, y, True) as x:
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

    def _checked(self, x: Any, y: Any = None, is_training: bool = False) -> contextlib.AbstractContextManager[Any]:
        options = {
            "num_classes": self.config.num_classes,
            "hand_targets": is_training and self.wants_targets,
            "without_padding": None if self.config.knows_padding else self.title,
        }
        if is_tf_dataset(x):
            from tfdetr_keras.data import checks  # an upper floor; TensorFlow is there already

            return checked(x, y, of_datasets=checks, **options)
        return checked(x, y, **options)

    def get_compile_config(self) -> Any:
        """Return how the model was compiled, for Keras to save it; None where it cannot be trained."""
        return None if is_integer(self) else super().get_compile_config()

    def get_config(self) -> dict[str, Any]:
        """Return architecture, criterion, dtype policy and quantisation, for `from_config`."""
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
        """Return the model that `get_config` described, with fresh weights."""
        model = cls(
            cls.config_class.of(config["config"]),
            criterion_of(config["criterion"], cls.__name__),
            name=config["name"],
            dtype=keras.saving.deserialize_keras_object(config["dtype"]),
        )
        quantize_as(model, config.get("quantization", ()))
        return model
