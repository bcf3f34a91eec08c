"""What a caller wants to be different from a checkpoint: its classes, its queries, and which rows its head keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.class_rows import ClassRows, match_rows
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.names.classes import ClassNames, names_by_id


@dataclasses.dataclass(frozen=True)
class Changes:
    """The changes that a caller of `load_model` asks for.

    Args:
        num_classes: number of classes; None for the checkpoint's, or that of the names.
        names: name of each class; None where the caller gives none.
        num_queries: number of object queries; None for the checkpoint's.
        keep_head: whether the class head is kept by position, or drawn anew; None for by name.
    """

    num_classes: int | None = None
    names: Mapping[int, str] | None = None
    num_queries: int | None = None
    keep_head: bool | None = None

    @classmethod
    def of(
        cls,
        num_classes: int | None = None,
        id2label: ClassNames | None = None,
        num_queries: int | None = None,
        keep_head: bool | None = None,
    ) -> Changes:
        """Check what the caller gave.

        Raises:
            ValueError: names that are no names or of another number than `num_classes`; a number that is none.
        """
        for name, value in (("num_classes", num_classes), ("num_queries", num_queries)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if keep_head not in (None, True, False):
            raise ValueError(f"keep_head must be True, False or None, not {keep_head!r}")
        if id2label is None:
            return cls(num_classes, None, num_queries, keep_head)
        names = names_by_id(id2label)
        if num_classes is not None and num_classes != len(names):
            raise ValueError(f"id2label names {len(names)} classes, but num_classes={num_classes}")
        return cls(len(names), names, num_queries, keep_head)

    @property
    def say_classes(self) -> bool:
        """Whether the caller says what the classes are, so that the checkpoint need not."""
        return self.num_classes is not None

    def applied_to(self, config: DetectorConfig) -> DetectorConfig:
        """Return a checkpoint's configuration with the changes.

        Raises:
            ValueError: the names do not count from 0.
        """
        changed: dict[str, Any] = {}
        if self.num_queries is not None:
            changed["num_queries"] = self.num_queries
        if self.names is not None or self.num_classes not in (None, config.num_classes):
            changed.update(num_classes=self.num_classes, id2label=self.names)
        return dataclasses.replace(config, **changed)

    def rows(self, config: DetectorConfig) -> ClassRows:
        """Return which rows of the class head of a checkpoint of this configuration are kept.

        Raises:
            ValueError: `keep_head` is true for another number of classes.
        """
        return match_rows(config.names, self.applied_to(config).names, self.names is not None, self.keep_head)

    def of_criterion(self, criterion: SetCriterion, config: DetectorConfig) -> SetCriterion:
        """Return a checkpoint's loss with the weights of its classes, where it has any, in the new order."""
        weights = criterion.class_weights
        if weights is None or len(weights) != config.num_classes:
            return criterion
        return dataclasses.replace(criterion, class_weights=self.rows(config).of_weights(weights))
