"""The layer around deformable attention: where each query looks, and how much (Deformable DETR, section 4.1).

Offsets from a reference and attention weights are linear in the query, in contrast to attention proper: no query is
compared with a key. Members of the family differ in what is around that, which is what the arguments are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import initializers, layers, ops

from tfdetr_keras.layers.deformable_attention import deformable_attention
from tfdetr_keras.layers.untrained import UntrainedDense


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class HeadDirections(initializers.Initializer):
    """Offsets to begin with: head m looks into direction 2π·m / heads, and point k of a level k pixels far.

    Distances are those of the maximum norm, so that diagonal heads look at pixels, too.

    Args:
        heads: number of heads.
        points_per_level: number of points of each level.
    """

    def __init__(self, heads: int, points_per_level: Sequence[int]) -> None:
        self.heads, self.points_per_level = heads, list(points_per_level)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return the biases `(heads · points · 2,)`, x before y."""
        offsets = []
        for head in range(self.heads):
            angle = 2 * math.pi * head / self.heads
            direction = math.cos(angle), math.sin(angle)
            longest = max(map(abs, direction))
            for number in self.points_per_level:
                offsets += [(point + 1) * part / longest for point in range(number) for part in direction]
        return ops.reshape(ops.convert_to_tensor(offsets, dtype=dtype), shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"heads": self.heads, "points_per_level": self.points_per_level}


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DeformableAttention(layers.Layer):
    """Attention of queries to a few points of feature maps around a reference.

    Offsets, locations and attention weights are float32 under mixed precision. It starts as the authors' does: offsets
    by head and point (`HeadDirections`), the same weight for all points, projections Xavier-uniform without bias.

    Args:
        d_model: channels of queries, values and outputs.
        heads: number of heads, which divides d_model.
        levels: number of feature maps.
        points: points of each level, a number for all or one for each.
        project_value: whether values are projected; D-FINE does not.
        project_output: whether outputs are projected; D-FINE does not.
        offset_scale: how far an offset of 1 leads, for references that are boxes: times width or height, divided by
            the level's number of points.
        sampling: `"bilinear"` or `"discrete"`, as for `td.deformable_attention`; with the latter offsets are not
            trained.
        recompute: whether what is read is read again on the way back, as for `td.deformable_attention`.

    Raises:
        ValueError: if heads do not divide d_model, or points are not a number for each level.

    Source:
        X. Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, section
        4.1 and appendix A.4; W. Lv et al., "RT-DETRv2", arXiv:2407.17140, for points by level.
    """

    def __init__(
        self,
        d_model: int,
        heads: int = 8,
        levels: int = 4,
        points: int | Sequence[int] = 4,
        project_value: bool = True,
        project_output: bool = True,
        offset_scale: float = 0.5,
        sampling: str = "bilinear",
        recompute: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # References would be cast to the policy's half precision, in which the pixels of an image cannot be told apart.
        super().__init__(**({"autocast": False} | kwargs))
        if d_model % heads:
            raise ValueError(f"heads must divide d_model, got {heads} heads and {d_model} channels")
        self.points_per_level = [points] * levels if isinstance(points, int) else list(points)
        if len(self.points_per_level) != levels:
            raise ValueError(
                f"points must be a number, or one for each of the {levels} levels, got {self.points_per_level}"
            )
        self.d_model, self.heads, self.levels, self.points = d_model, heads, levels, points
        self.project_value, self.project_output = project_value, project_output
        self.offset_scale, self.sampling, self.recompute = offset_scale, sampling, recompute

        total = heads * sum(self.points_per_level)
        exact = keras.backend.result_type(self.compute_dtype, "float32")
        directions = HeadDirections(heads, self.points_per_level)
        # Whole pixels give no gradient to what leads there.
        dense = UntrainedDense if sampling == "discrete" else layers.Dense
        self.sampling_offsets = dense(
            2 * total,
            kernel_initializer="zeros",
            bias_initializer=directions,
            name="sampling_offsets",
            dtype=exact,
        )
        self.attention_weights = layers.Dense(total, kernel_initializer="zeros", name="attention_weights", dtype=exact)
        if project_value:
            self.value_projection = layers.Dense(d_model, name="value_projection", dtype=self.dtype_policy)
        if project_output:
            self.output_projection = layers.Dense(d_model, name="output_projection", dtype=self.dtype_policy)

    def build(self, query_shape: Any, value_shape: Any = None) -> None:
        """Build for `(batch, queries, d_model)`."""
        self.sampling_offsets.build((None, None, self.d_model))
        self.attention_weights.build((None, None, self.d_model))
        if self.project_value:
            self.value_projection.build((None, None, self.d_model))
        if self.project_output:
            self.output_projection.build((None, None, self.d_model))

    def call(
        self,
        query: Any,
        value: Any,
        reference_points: Any,
        *,
        spatial_shapes: Any,
        value_mask: Any = None,
        return_points: bool = False,
    ) -> Any:
        """Attend.

        Args:
            query: `(batch, queries, d_model)`, with its position added.
            value: `(batch, tokens, d_model)`, the pixels of all levels, level after level, each row by row.
            reference_points: `(batch, queries, levels, 2)`, x and y from 0 to 1, from which offsets count in pixels
                of the level; or `(batch, queries, levels, 4)`, boxes as centre, width and height, from which they
                count in parts of the box. 1 in place of levels stands for all.
            spatial_shapes: `(levels, 2)` integers, height and width of each level; by name, as Keras wants it.
            value_mask: `(batch, tokens)` bool, True for image, False for padding, whose value is 0.
            return_points: whether the points and their weights are wanted, too.

        Returns:
            `(batch, queries, d_model)`; or a triple of that, the locations `(batch, queries, heads, points, 2)`,
            x and y from 0 to 1 and beyond, and the weights `(batch, queries, heads, points)`.

        Raises:
            ValueError: if the references are neither points nor boxes, or as many as neither levels nor one; or as
                `td.deformable_attention`.
        """
        (batch, queries), points = ops.shape(query)[:2], sum(self.points_per_level)
        offsets = ops.reshape(self.sampling_offsets(query), (batch, queries, self.heads, points, 2))
        weights = ops.reshape(self.attention_weights(query), (batch, queries, self.heads, points))
        locations = self._locations(reference_points, offsets, spatial_shapes)
        weights = ops.softmax(weights, axis=-1)

        value = self.value_projection(value) if self.project_value else ops.cast(value, self.compute_dtype)
        if value_mask is not None:
            value = ops.where(ops.cast(value_mask, "bool")[..., None], value, ops.zeros((), value.dtype))
        by_head = (*ops.shape(value)[:2], self.heads, self.d_model // self.heads)
        outputs = deformable_attention(
            ops.reshape(value, by_head),
            spatial_shapes,
            locations,
            weights,
            self.points_per_level,
            self.sampling,
            self.recompute,
        )
        outputs = self.output_projection(outputs) if self.project_output else outputs
        return (outputs, locations, weights) if return_points else outputs

    def _locations(self, references: Any, offsets: Any, spatial_shapes: Any) -> Any:
        """Return where offsets lead to from the references, `(batch, queries, heads, points, 2)`."""
        shape = tuple(references.shape)
        if len(shape) != 4 or shape[2] not in (1, self.levels) or shape[3] not in (2, 4):
            raise ValueError(
                f"reference_points must have shape (batch, queries, {self.levels} or 1, 2 or 4): x and y, or centre, "
                f"width and height, for each level; got {shape}"
            )
        level = [level for level, number in enumerate(self.points_per_level) for _ in range(number)]
        references = ops.cast(references, offsets.dtype)
        if shape[2] > 1:
            references = ops.take(references, ops.convert_to_tensor(level, dtype="int32"), axis=2)
        references = references[:, :, None]
        if shape[3] == 2:
            sizes = ops.flip(ops.cast(ops.convert_to_tensor(spatial_shapes), offsets.dtype), axis=1)
            return references + offsets / ops.take(sizes, ops.convert_to_tensor(level, dtype="int32"), axis=0)
        share = [self.offset_scale / self.points_per_level[one] for one in level]
        share = ops.convert_to_tensor(share, dtype=offsets.dtype)[:, None]
        return references[..., :2] + offsets * share * references[..., 2:]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = [
            "d_model",
            "heads",
            "levels",
            "project_value",
            "project_output",
            "offset_scale",
            "sampling",
            "recompute",
        ]
        own = {name: getattr(self, name) for name in names}
        points = self.points if isinstance(self.points, int) else list(self.points)
        return {**super().get_config(), **own, "points": points}
