"""What vision transformers of several kinds share: patches, windows, blocks, and a table of positions.

Attention in most blocks stays within windows, which stand beside the images of the batch; that of some blocks joins
the windows of an image.

Source:
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929; Li et al. 2022, "Exploring Plain Vision
    Transformer Backbones for Object Detection", arXiv:2203.16527, section 3, for windows.
"""

from __future__ import annotations

from typing import Any

from keras import initializers, layers, ops

from tfdetr_keras.layers.attention import MultiHeadAttention
from tfdetr_keras.layers.bicubic import resize_bicubic
from tfdetr_keras.layers.transformer import FeedForward

NORM_EPSILON = 1e-6
SPREAD = 0.02  # of fresh weights


def normal() -> initializers.Initializer:
    """Make the initialiser of all kernels; a new one for each, since an initialiser draws its seed once.

    Nothing is cut off: the authors' `trunc_normal_` does so at ±2, where Keras' does at two standard deviations.
    """
    return initializers.RandomNormal(stddev=SPREAD)


class PositionTable(layers.Layer):
    """A vector for each place of a square grid, resized to the grid of the image.

    Args:
        side: places along each side of the table.
        width: channels.
        antialias: whether a smaller grid is smoothed.
    """

    def __init__(self, side: int, width: int, antialias: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.side, self.width, self.antialias = side, width, antialias

    def build(self, input_shape: Any = None) -> None:
        """Create the table, and one more vector, that of the token which stands for the whole image."""
        shape = (self.side * self.side + 1, self.width)
        self.table = self.add_weight(shape=shape, initializer=normal(), name="table")

    def call(self, *, size: Any) -> tuple[Any, Any]:
        """Return the vectors of a grid, `(height, width, channels)`, and that of the image, `(channels,)`.

        Args:
            size: height and width of the grid, numbers or tensors.
        """
        height, width = size
        table = ops.cast(self.table, "float32")
        grid = ops.reshape(table[1:], (self.side, self.side, self.width))
        is_known = isinstance(height, int) and isinstance(width, int)
        if not (is_known and height == width == self.side):
            grid = resize_bicubic(grid, height, width, self.antialias)
        return ops.cast(grid, self.compute_dtype), ops.cast(table[0], self.compute_dtype)


class ViTBlock(layers.Layer):
    """Attention and a feed-forward network, each normalised before, scaled by channel, and added to what came in.

    Args:
        width: channels.
        heads: of the attention.
        windows: windows of an image.
        is_global: whether the attention joins the windows of an image.
        scale: factors of each channel to start with.
        drop_path: share of windows for which a branch is left out in training (Huang et al. 2016, "Deep Networks with
            Stochastic Depth", arXiv:1603.09382).
        key_bias: whether keys have a bias, as queries and values do.
        is_used: whether anything follows that learns from the block. One that is not used keeps its weights.
    """

    recompute = False  # see `Detector.recompute`

    def __init__(
        self,
        width: int,
        heads: int,
        windows: int,
        is_global: bool,
        scale: float,
        drop_path: float = 0.0,
        key_bias: bool = True,
        is_used: bool = True,
        **kwargs: Any,
    ) -> None:
        self.is_used = is_used
        super().__init__(**kwargs)
        self.width, self.windows, self.is_global, self.scale_start = width, windows, is_global, scale
        policy = self.dtype_policy
        self.attention_norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="attention_norm", dtype=policy)
        self.attention = MultiHeadAttention(
            heads,
            width // heads,
            key_bias=key_bias,
            kernel_initializer=normal(),
            name="attention",
            dtype=policy,
        )
        self.feed_forward_norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="feed_forward_norm", dtype=policy)
        self.feed_forward = FeedForward(
            width, 4 * width, "gelu", kernel_initializer=normal, name="feed_forward", dtype=policy
        )
        self.drop_path = layers.Dropout(drop_path, noise_shape=(None, 1, 1), name="drop_path", dtype=policy)

    @property
    def trainable(self) -> bool:
        """Whether its weights are trained; never those of a block that is not used."""
        return bool(self._trainable) and self.is_used

    @trainable.setter
    def trainable(self, value: bool) -> None:
        layers.Layer.trainable.fset(self, value and self.is_used)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch · windows, tokens, width)`."""
        shape = (None, None, self.width)
        for layer in (self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward, self.drop_path):
            layer.build(shape)
        start = initializers.Constant(self.scale_start)
        self.attention_scale = self.add_weight(shape=(self.width,), initializer=start, name="attention_scale")
        self.feed_forward_scale = self.add_weight(shape=(self.width,), initializer=start, name="feed_forward_scale")
        if not self.is_used:
            self.trainable = False

    def call(self, x: Any, training: bool = False) -> Any:
        """Map `(batch · windows, tokens, width)` → the same shape."""
        shape = ops.shape(x)
        y = self.attention_norm(x)
        if self.is_global and self.windows > 1:
            y = ops.reshape(y, (-1, self.windows * shape[1], self.width))
        y = self.attention(y, y, training=training)
        if self.is_global and self.windows > 1:
            y = ops.reshape(y, shape)
        x = x + self.drop_path(y * self.attention_scale, training=training)
        y = self.feed_forward(self.feed_forward_norm(x), training=training)
        return x + self.drop_path(y * self.feed_forward_scale, training=training)


def in_windows(x: Any, side: int) -> Any:
    """Cut maps `(batch, height, width, channels)` into `(batch · side², positions, channels)`, window by window."""
    if side == 1:
        batch, height, width, channels = ops.shape(x)
        return ops.reshape(x, (batch, height * width, channels))
    batch, height, width, channels = ops.shape(x)
    high, wide = height // side, width // side
    x = ops.transpose(ops.reshape(x, (batch, side, high, side, wide, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (batch * side * side, high * wide, channels))


def joined(x: Any, side: int, height: Any, width: Any) -> Any:
    """Put windows `(batch · side², positions, channels)` together, `(batch, height, width, channels)`."""
    channels = x.shape[-1]
    if side == 1:
        return ops.reshape(x, (-1, height, width, channels))
    x = ops.reshape(x, (-1, side, side, height // side, width // side, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))
