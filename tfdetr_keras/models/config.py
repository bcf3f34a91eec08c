"""What every detector's configuration holds: its backbone, its classes, and what belongs to it beside the network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from tfdetr_keras.backbones.config import BackboneConfig, whole_number
from tfdetr_keras.backbones.resnet import ResNetConfig
from tfdetr_keras.matching.classification import Classification, classification_named
from tfdetr_keras.names.classes import ClassNames, names_by_id
from tfdetr_keras.names.spelling import did_you_mean
from tfdetr_keras.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """What the configurations of all detectors share; each member's adds the numbers of its own network.

    Args:
        backbone: the backbone, or the mapping of its fields.
        num_classes: real classes.
        num_queries: object queries, the most objects that one image can yield.
        auxiliary_outputs: whether the outputs of all decoder layers are returned, and so trained, or the last only.
        id2label: class id → name, for each of the `num_classes` ids, or a list of the names; `class_0`, `class_1`, …
            where left out. It is kept as a mapping.
        frozen: parts of the model that are not trained, as names or as a text like `"stem+stage1"`, which DETR froze in
            its experiments: any of `parts`. PyTorch calls the stages `layer1`, …; that is understood, too.
        preprocessing: how images become the model's input.
        recipe: settings of training in which the model's authors differ from DETR's, by their names in
            `tfdetr_keras.training.Settings`.

    Raises:
        ValueError: a field that is not what it should be; the message names it.
    """

    backbone_class: ClassVar[type[BackboneConfig]] = ResNetConfig
    other_backbones: ClassVar[tuple[type[BackboneConfig], ...]] = ()  # classes of backbones that it may have, too

    backbone: Any = dataclasses.field(default_factory=ResNetConfig)
    num_classes: int = 91
    num_queries: int = 100
    auxiliary_outputs: bool = True
    id2label: ClassNames | None = None
    frozen: str | Sequence[str] = ()
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds: tuple[type[BackboneConfig], ...] = (self.backbone_class, *self.other_backbones)
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", _backbone_of(self.backbone, kinds))
        if not isinstance(self.backbone, kinds):
            wanted = " or a ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"backbone must be a {wanted}, or the mapping of one, not {self.backbone!r}")
        object.__setattr__(self, "preprocessing", Preprocessing.of(self.preprocessing))
        if not isinstance(self.recipe, Mapping) or not all(isinstance(name, str) for name in self.recipe):
            raise ValueError(f"recipe must be settings of a training run by their names, not {self.recipe!r}")
        object.__setattr__(self, "recipe", dict(self.recipe))
        if not self.knows_padding:
            self.preprocessing.check_without_padding(type(self).__name__.removesuffix("Config"))
        for name in ("num_classes", "num_queries"):
            whole_number(name, getattr(self, name))
        self._check()

        if self.id2label is None:
            names = {index: f"class_{index}" for index in range(self.num_classes)}
        else:
            names = names_by_id(self.id2label)
        if list(names) != list(range(self.num_classes)):
            raise ValueError(
                f"id2label must name each of the ids 0 … {self.num_classes - 1} (num_classes={self.num_classes}), "
                f"but it names {_summary(list(names))}: give a mapping that counts from 0, or a list of the names"
            )
        object.__setattr__(self, "id2label", names)

        frozen = self.frozen.split("+") if isinstance(self.frozen, str) else self.frozen
        if not isinstance(frozen, list | tuple) or not all(isinstance(name, str) for name in frozen):
            raise ValueError(f"frozen must be names of parts, as a list or as a text like stem+stage1, not {frozen!r}")
        frozen = tuple(re.sub(r"^layer(?=\d)", "stage", name.strip()) for name in frozen if name.strip())
        for name in frozen:
            if name not in self.parts:
                raise ValueError(
                    f"frozen: {name!r} is no part of this model; there are {', '.join(self.parts)}"
                    f"{did_you_mean(name, self.parts)}"
                )
        object.__setattr__(self, "frozen", frozen)

    def _check(self) -> None:
        """Raise a `ValueError` where the fields that a member adds do not fit."""

    def check_canvas(self, height: int, width: int) -> None:
        """Raise a `ValueError` for images of a size, pixels, that the network cannot look at."""

    @property
    def classification(self) -> str | Classification:
        """How a query is classified: by a softmax over the classes and "no object", or a sigmoid for each class."""
        return "softmax"

    @property
    def names(self) -> dict[int, str]:
        """Class id → class name, in the order of the ids."""
        return names_by_id(self.id2label)

    @property
    def num_logits(self) -> int:
        """Outputs of the class head."""
        return classification_named(self.classification).num_logits(self.num_classes)

    @property
    def knows_padding(self) -> bool:
        """Whether images may be padded, as a mask tells the model."""
        return True

    @property
    def query_groups(self) -> int:
        """How many groups of as many queries there are embeddings for."""
        return 1

    @property
    def num_predictions(self) -> int:
        """Rows of the outputs for each image: one for each query."""
        return self.num_queries

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen: attributes of the model."""
        return ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the model's parts that can be frozen."""
        return ("backbone", *self.backbone.parts, *self.own_parts)

    @property
    def network(self) -> str:
        """The network in words: what stands behind "a detector over"."""
        return f"{self.backbone.title}, {self.num_queries} queries"

    @property
    def is_foldable(self) -> bool:
        """Whether the model has batch normalisation that can be folded into convolutions."""
        return bool(self.backbone.is_foldable)

    def folded(self) -> Self:
        """Return the architecture with batch normalisation folded, and with no more than inference needs."""
        return dataclasses.replace(self, backbone=self.backbone.folded())

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Make a configuration of what `to_dict` gave, in this version or an earlier one.

        Raises:
            ValueError: fields that this class does not have, or that do not fit.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"this does not describe a {cls.__name__.removesuffix('Config')}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, which `of` takes back."""
        return dataclasses.asdict(self)


def _backbone_of(fields: Mapping[str, Any], kinds: Sequence[type[BackboneConfig]]) -> BackboneConfig:
    """Return the backbone that fields are of: of the first class that has all of them."""
    known = (kind for kind in kinds if set(fields) <= {field.name for field in dataclasses.fields(kind)})
    return next(known, kinds[0])(**fields)


def _summary(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"{values[:4]} … {values[-2:]} ({len(values)} ids)"
