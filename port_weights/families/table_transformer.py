"""Table Transformer: DETR's names, and one more normalisation, which its encoder is known by."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.families.detr import DETRFamily
from port_weights.tables import Scheme


class TableTransformerFamily(DETRFamily):
    """What Table Transformer differs in."""

    member = "TableTransformer"
    config = "TableTransformerConfig"
    model_types: ClassVar[tuple[str, ...]] = ("table-transformer",)
    transformers_class = "TableTransformerForObjectDetection"

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether it is called so, or nothing is said and the encoder ends with a normalisation."""
        return model_type in self.model_types or (model_type is None and "encoder/norm/gamma" in paths)

    def _on_disk(self, config: Any) -> str:
        # Version 5 moved the learned positions out of DETR's backbone, but not out of Table Transformer's.
        return "hugging-face-4" if config.position_embedding == "learned" else self.on_disk

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the same names as on disk, which it kept in version 5."""
        return self.hugging_face_scheme(config)
