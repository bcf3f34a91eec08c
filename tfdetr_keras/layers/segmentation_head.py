"""RF-DETR's head for masks: a mask is the product of the image's features and a query's, pixel by pixel.

The features are a quarter of the image's sides, and one small block finer for each decoder layer. A mask costs one
product more, so that training makes those of matched queries alone.

Source:
    Robinson et al. 2025, "RF-DETR", arXiv:2511.09554, and its code (`rfdetr`, segmentation_head.py); products of
    features and queries as in Cheng et al. 2021, "MaskFormer", arXiv:2107.06278, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from tfdetr_keras.layers.activations import gelu
from tfdetr_keras.layers.depthwise import DepthwiseConvolution
from tfdetr_keras.layers.mlp import linear_initializers
from tfdetr_keras.layers.resize import resize_bilinear
from tfdetr_keras.layers.transformer import NORM_EPSILON, FeedForward

SPATIAL_EPSILON = 1e-6
REDUCTION = 4  # of the image's sides to those of the masks


class DepthwiseBlock(layers.Layer):
    """A 3×3 convolution of each channel, a normalisation, a dense layer and GELU, added to what came in.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        policy, start = self.dtype_policy, linear_initializers(3 * 3)
        self.depthwise = DepthwiseConvolution(
            3,
            depthwise_initializer=start["kernel_initializer"],
            bias_initializer=start["bias_initializer"],
            name="depthwise",
            dtype=policy,
        )
        self.norm = layers.LayerNormalization(epsilon=SPATIAL_EPSILON, name="norm", dtype=policy)
        self.pointwise = layers.Dense(channels, name="pointwise", dtype=policy, **linear_initializers(channels))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        for layer in (self.depthwise, self.norm, self.pointwise):
            layer.build((None, None, None, self.channels))

    def call(self, x: Any) -> Any:
        """Map `(batch, height, width, channels)` → the same shape."""
        return x + gelu(self.pointwise(self.norm(self.depthwise(x))))


class SegmentationHead(layers.Layer):
    """Features and queries whose products are masks, for each decoder layer and for the encoder's proposals.

    Args:
        channels: of features and queries.
        depth: decoder layers.
    """

    def __init__(self, channels: int, depth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        policy = self.dtype_policy
        self.blocks = [DepthwiseBlock(channels, name=f"block{index}", dtype=policy) for index in range(depth)]
        self.spatial_projection = layers.Conv2D(
            channels, 1, name="spatial_projection", dtype=policy, **linear_initializers(channels)
        )
        self.query_norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="query_norm", dtype=policy)
        self.query_mlp = FeedForward(channels, 4 * channels, "gelu", xavier=False, name="query_mlp", dtype=policy)
        self.query_projection = layers.Dense(
            channels, name="query_projection", dtype=policy, **linear_initializers(channels)
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, height, width, channels)`."""
        for block in self.blocks:
            block.build((None, None, None, self.channels))
        self.spatial_projection.build((None, None, None, self.channels))
        for layer in (self.query_norm, self.query_mlp, self.query_projection):
            layer.build((None, None, self.channels))
        self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")

    def call(
        self, features: Any, embeddings: Sequence[Any], *, size: Any, proposals: Any = None, training: bool = False
    ) -> dict[str, Any]:
        """Make what masks are products of.

        Args:
            features: `(batch, h, w, channels)`, the finest map that the decoder looks at.
            embeddings: of the decoder's layers, `(batch, queries, channels)` each; where they are fewer than the
                blocks, they are those of the last layers.
            size: height and width of the images, pixels.
            proposals: embeddings of the encoder's proposals, if their masks are wanted, too.
            training: not looked at.

        Returns:
            `"features"` `(batch, layers, height / 4, width / 4, channels)` and `"queries"` `(batch, layers, queries,
            channels)`; of proposals likewise `"proposal_features"` and `"proposal_queries"`, with one layer; `"bias"`
            `(1,)`.
        """
        height, width = (side // REDUCTION for side in size)
        x = resize_bilinear(features, height, width)
        found: dict[str, Any] = {"bias": self.bias}
        if proposals is not None:
            found["proposal_features"] = self.spatial_projection(x)[:, None]
            found["proposal_queries"] = self._queries(proposals)[:, None]
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - len(embeddings):
                maps.append(self.spatial_projection(x))
        found["features"] = ops.stack(maps, axis=1)
        found["queries"] = ops.stack([self._queries(own) for own in embeddings], axis=1)
        return found

    def _queries(self, embeddings: Any) -> Any:
        return self.query_projection(embeddings + self.query_mlp(self.query_norm(embeddings)))


def masks_of(features: Any, queries: Any, bias: Any) -> Any:
    """Return masks, the products of features and queries.

    Args:
        features: `(batch, …, h, w, channels)`.
        queries: `(batch, …, n, channels)`.
        bias: `(1,)`.

    Returns:
        `(batch, …, n, h, w)` float32 logits.
    """
    shape = ops.shape(features)
    flat = ops.reshape(features, (*shape[:-3], shape[-3] * shape[-2], shape[-1]))
    products = ops.matmul(queries, ops.swapaxes(flat, -1, -2))
    masks = ops.cast(products, "float32") + ops.cast(bias, "float32")
    return ops.reshape(masks, (*ops.shape(queries)[:-1], shape[-3], shape[-2]))
