"""What porting knows of a member of the family: its names, its settings and its files, as PyTorch's world has them."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.resnet import Backbone
from port_weights.tables import Scheme


class Family(abc.ABC):
    """One record a member. Architectures are read as plain values, and written from a configuration's attributes."""

    member: ClassVar[str]  # the class of the models
    config: ClassVar[str]  # the class of their configuration
    model_types: ClassVar[tuple[str, ...]]  # in config.json; the first is written
    transformers_class: ClassVar[str]
    image_processor: ClassVar[str] = "DetrImageProcessor"
    has_no_object: ClassVar[bool] = True  # whether the class head has an output for "no object"
    backbones_of_authors: ClassVar[str] = "torchvision"  # where the authors' code takes them from
    fields_of_heads: ClassVar[tuple[str, ...]] = ("encoder_attention_heads", "decoder_attention_heads")
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = ()  # naming, and a tensor that it is known by

    @abc.abstractmethod
    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint of this member names its tensors; None if it is none."""

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether a checkpoint whose names `detect` knows is one of this member's, by its Keras paths and own names."""
        return model_type is None or model_type in self.model_types

    @abc.abstractmethod
    def architecture(self, checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Any]:
        """Return the fields of the configuration that fits a checkpoint.

        Raises:
            ValueError: what it describes is no such model.
        """

    @abc.abstractmethod
    def coefficients(self, checkpoint: Checkpoint) -> dict[str, float]:
        """Return what a checkpoint tells of the loss, as fields of `SetCriterion`."""

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss, as fields of `SetCriterion`; nothing where it tells none."""
        return {}

    def image_size(self, checkpoint: Checkpoint) -> tuple[int, int] | None:
        """Return height and width, pixels, of the images that the training arguments name; None where they do not."""
        return None

    def compared_size(self, config: Any) -> tuple[int, int]:
        """Return height and width, pixels, of images on which a model is compared with transformers'."""
        return (224, 288)

    def scores_of_proposals(self, logits: Any) -> Any:
        """Return the scores by which tokens become queries, `(…)`, of the proposals' logits `(…, classes)`."""
        return logits.max(axis=-1)

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        raise ValueError(f"a {self.member} cannot be written for transformers")

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` if the authors' code has no such model, or would compute another one."""
        raise ValueError(f"a {self.member} cannot be written as its authors' .pth")

    def is_unknown_to_torchvision(self, config: Any) -> bool:
        """Whether the authors' code, which may take its backbone from torchvision, cannot make this one."""
        return False

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model.

        Args:
            config: the architecture.
            criterion: the loss; None for transformers' own.
            backbone: whose ResNet it is there.

        Raises:
            ValueError: transformers has no such model.
        """
        raise ValueError(f"a {self.member} cannot be written for transformers")

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk.

        Raises:
            ValueError: transformers has no such model.
        """
        raise ValueError(f"a {self.member} cannot be written for transformers")

    def reference_scheme(self, config: Any) -> Scheme:
        """Return how transformers names the tensors in memory; as on disk where it does not say otherwise."""
        return self.hugging_face_scheme(config)

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors.

        Raises:
            ValueError: they are not written so.
        """
        raise ValueError(f"a {self.member} cannot be written as its authors' .pth")

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the arguments of the authors' training script that say what the model and its loss are.

        Raises:
            ValueError: the script has no arguments that say it.
        """
        raise ValueError(f"a {self.member} cannot be written as its authors' .pth")


def shapes_by_path(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, tuple[int, ...]]:
    """Return Keras path → shape of the PyTorch tensor that holds it; looked up once for each checkpoint and scheme."""
    found: dict[str, dict[str, tuple[int, ...]]] = checkpoint.__dict__.setdefault("_by_path", {})
    if scheme.title not in found:
        paths = ((path, shape) for name, shape in checkpoint.shapes.items() for path, _ in scheme.keras_paths(name))
        found[scheme.title] = dict(paths)
    return found[scheme.title]


def told(names: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the fields that settings have under other names, `{theirs: ours}`."""
    return ((ours, settings[theirs]) for theirs, ours in names.items() if settings.get(theirs) is not None)
