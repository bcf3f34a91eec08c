"""Classification of queries: the cost of a wrong class, the loss, and the answers that are kept in the end.

One object defines all of it, so that matching, training, post-processing and exports agree. `"softmax"`, `"focal"`,
`"varifocal"`, `"matchability_aware"` and `"iou_aware"` are short names of the published ones; derive a class from
`Classification` for another.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tfdetr_keras.backend.replicas import sum_over_replicas
from tfdetr_keras.matching.iou_aware import iou_aware_losses

TOP_K = 100  # detections an image, of which each query may give several
FOCAL_COST_ALPHA, FOCAL_COST_GAMMA = 0.25, 2.0
FOCAL_COST_EPSILON = 1e-8  # inside the logarithms, as in the published matchers


class Weighting(NamedTuple):
    """The weights of the classes in the loss; its fields are those of `SetCriterion` with the same names."""

    class_weights: tuple[float, ...] | None = None
    eos_coefficient: float = 0.1
    label_smoothing: float = 0.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


class Classification(abc.ABC):
    """The meaning of a query's class logits."""

    name: str
    has_no_object: bool  # whether the last logit stands for "no object"
    wants_quality: bool = False  # whether the loss is given `quality`, how well each query's box fits its object
    alpha: float = 0.25  # of the loss, where `SetCriterion` is told none
    gamma: float = 2.0  # likewise
    limit: int | None = None  # answers of an image that are kept; as many as queries for None

    def most(self, num_queries: int) -> int:
        """Return how many answers of an image are kept."""
        return num_queries if self.limit is None else self.limit

    def answers_as(self, other: str | Classification) -> bool:
        """Return whether a model of the other classification can be trained with this one's loss."""
        return self == classification_named(other)

    def num_logits(self, num_classes: int) -> int:
        """Return the number of logits of a query."""
        return num_classes + self.has_no_object

    @abc.abstractmethod
    def cost(self, logits: Any, wanted: Any) -> Any:
        """Return the class term of the matching's cost.

        Args:
            logits: `(batch, layers, queries, logits)` float.
            wanted: `(batch, layers, queries, objects)` float, the logits of the objects' classes.

        Returns:
            `(batch, layers, queries, objects)` float.
        """

    @abc.abstractmethod
    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting) -> Any:
        """Return `loss_ce` of each decoder layer, `(layers,)`.

        Args:
            logits: `(batch, layers, queries, logits)` float32.
            classes: `(batch, layers, queries)` int32, the matched class, or the number of classes for none.
            num_boxes: scalar, the objects of the batch, at least 1.
            weighting: of the classes.
        """

    @abc.abstractmethod
    def is_object(self, logits: Any) -> Any:
        """Return which queries find something rather than nothing, `(…, queries, logits)` → `(…, queries)` bool."""

    @abc.abstractmethod
    def ranked(self, logits: Any, top_k: int | None = None) -> tuple[Any, Any, Any]:
        """Return an image's answers ordered by their scores, the highest first, in the backend's own tensors.

        Args:
            logits: `(batch, queries, logits)` float, of known queries and logits.
            top_k: how many answers at most, where a query may give several; as many as published where left out.

        Returns:
            Scores float32, labels int32 and queries int32, `(batch, n)` each.
        """

    @abc.abstractmethod
    def confident(self, logits: np.ndarray, top_k: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return an image's answers for post-processing, before any threshold.

        Args:
            logits: `(batch, queries, logits)` float32.
            top_k: how many answers at most, where a query may give several; as many as published where left out.

        Returns:
            Scores float32, labels int64 and queries int64, `(batch, n)` each.
        """

    def __eq__(self, other: object) -> bool:
        """Return whether both are of one class."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        """Return a hash that agrees with `__eq__`."""
        return hash(type(self))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments: none."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Classification:
        """Return the object that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class Softmax(Classification):
    """One distribution over the classes and "no object" per query; the likeliest class is the answer.

    Source: DETR, section 3.1.
    """

    name = "softmax"
    has_no_object = True

    def cost(self, logits: Any, wanted: Any) -> Any:
        """Return −p, the probability rather than its logarithm, as in the paper."""
        return -ops.exp(wanted - ops.logsumexp(logits, axis=-1, keepdims=True))

    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting) -> Any:
        """Return the weighted mean cross-entropy."""
        num_classes, smoothing = logits.shape[-1], weighting.label_smoothing
        class_weights = ops.convert_to_tensor(
            [*(weighting.class_weights or [1.0] * (num_classes - 1)), weighting.eos_coefficient], "float32"
        )
        weights = ops.take(class_weights, classes)
        log_probabilities = ops.log_softmax(logits, axis=-1)
        log_probability = ops.take_along_axis(log_probabilities, classes[..., None], axis=-1)[..., 0]
        losses = weights * log_probability
        if smoothing:
            spread = ops.sum(class_weights * log_probabilities, axis=-1) / num_classes
            losses = (1 - smoothing) * losses + smoothing * spread
        return -ops.divide_no_nan(ops.sum(losses, axis=(0, 2)), sum_over_replicas(ops.sum(weights, axis=(0, 2))))

    def is_object(self, logits: Any) -> Any:
        """Return which queries have a class as their likeliest answer."""
        return ops.argmax(logits, axis=-1) != logits.shape[-1] - 1

    def ranked(self, logits: Any, top_k: int | None = None) -> tuple[Any, Any, Any]:
        """Return all queries, each with its likeliest class."""
        # Not `argmax`, which Keras makes of an operation that ONNX does not have.
        best, labels = ops.top_k(ops.softmax(logits)[..., :-1], k=1)
        scores, queries = ops.top_k(best[..., 0], k=logits.shape[1])
        labels = ops.take_along_axis(ops.cast(labels[..., 0], "int32"), queries, axis=1)
        return scores, labels, ops.cast(queries, "int32")

    def confident(self, logits: np.ndarray, top_k: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all queries in their order, each with its likeliest class."""
        probabilities = softmax(logits)[..., :-1]
        scores, labels = probabilities.max(-1), probabilities.argmax(-1)
        return scores, labels, np.broadcast_to(np.arange(logits.shape[1]), scores.shape)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class Focal(Classification):
    """An independent sigmoid per class, without "no object"; a query may give several classes.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, equation 5; Zhu et al. 2021,
    "Deformable DETR", arXiv:2010.04159, appendix A.4.
    """

    name = "focal"
    has_no_object = False
    limit: int | None = TOP_K

    def cost(self, logits: Any, wanted: Any) -> Any:
        """Return the focal loss for the class being there, less that for its absence."""
        # Not 1 − p: of 1 − p + ε XLA makes (1 + ε) − p, whose logarithm is infinite where p rounds to 1.
        probability, rest = ops.sigmoid(wanted), ops.sigmoid(-wanted)
        there = FOCAL_COST_ALPHA * rest**FOCAL_COST_GAMMA * -ops.log(probability + FOCAL_COST_EPSILON)
        absent = (1 - FOCAL_COST_ALPHA) * probability**FOCAL_COST_GAMMA * -ops.log(rest + FOCAL_COST_EPSILON)
        return there - absent

    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting) -> Any:
        """Return the focal loss per object, summed over queries and classes."""
        num_classes, smoothing, alpha = logits.shape[-1], weighting.label_smoothing, weighting.focal_alpha
        target = ops.one_hot(classes, num_classes + 1)[..., :-1] * (1 - smoothing) + smoothing / 2
        probability = ops.sigmoid(logits)
        # −log σ(x) = softplus(−x) and −log(1 − σ(x)) = softplus(x) stay finite where the probability rounds to 0 or 1.
        cross_entropy = ops.softplus(logits) - target * logits
        of_target = probability * target + (1 - probability) * (1 - target)
        balance = alpha * target + (1 - alpha) * (1 - target)
        losses = balance * (1 - of_target) ** weighting.focal_gamma * cross_entropy
        if weighting.class_weights is not None:
            losses = losses * ops.convert_to_tensor(weighting.class_weights, "float32")
        return _sums_of_layers(losses) / num_boxes

    def is_object(self, logits: Any) -> Any:
        """Return which queries give a class a probability above 1/2."""
        return ops.max(logits, axis=-1) > 0

    def ranked(self, logits: Any, top_k: int | None = None) -> tuple[Any, Any, Any]:
        """Return the likeliest pairs of query and class."""
        queries, classes = logits.shape[1], logits.shape[2]
        top_k = self.most(queries) if top_k is None else top_k
        probabilities = ops.reshape(ops.sigmoid(logits), (-1, queries * classes))
        scores, place = ops.top_k(probabilities, k=min(top_k, queries * classes))
        place = ops.cast(place, "int32")
        return scores, place % classes, place // classes

    def confident(self, logits: np.ndarray, top_k: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the likeliest pairs; among equal ones, the earlier query comes first, then the lower label."""
        top_k = self.most(logits.shape[1]) if top_k is None else top_k
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        pairs = sigmoid(logits).reshape(len(logits), -1)
        order = np.argsort(-pairs, axis=1, kind="stable")[:, :top_k]
        queries, labels = np.divmod(order, logits.shape[2])
        return np.take_along_axis(pairs, order, axis=1), labels, queries


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class Varifocal(Focal):
    """A sigmoid per class that learns the IoU of the query's box with its object: scores say how well a box fits.

    The cost of the matching is that of the focal loss; as many answers are kept as there are queries.

    Source: Zhang et al. 2021, "VarifocalNet: An IoU-aware Dense Object Detector", arXiv:2008.13367, equation 2; Zhao et
    al. 2023, "RT-DETR", arXiv:2304.08069, section 4.3.
    """

    name = "varifocal"
    wants_quality = True
    alpha = 0.75
    limit = None

    def answers_as(self, other: str | Classification) -> bool:
        """Return whether the other is a varifocal one, too, whatever its loss."""
        return isinstance(classification_named(other), Varifocal)

    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting, quality: Any = None) -> Any:
        """Return the varifocal loss per object, summed over queries and classes.

        Args:
            logits: `(batch, layers, queries, classes)` float32.
            classes: `(batch, layers, queries)` int32, the matched class, or the number of classes for none.
            num_boxes: scalar, the objects of the batch, at least 1.
            weighting: of the classes.
            quality: `(batch, layers, queries)` float32, the IoU of the pair's boxes.
        """
        is_class = ops.one_hot(classes, logits.shape[-1] + 1)[..., :-1]
        target = is_class * quality[..., None]
        weight = weighting.focal_alpha * ops.sigmoid(logits) ** weighting.focal_gamma * (1 - is_class) + target
        return _weighted_cross_entropy(logits, target, weight, weighting) / num_boxes


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class MatchabilityAware(Varifocal):
    """Varifocal, with a loss in which a pair counts fully however little its boxes overlap.

    Models of the varifocal classification may be trained with it, since answers are the same.

    Source: Huang et al. 2024, "DEIM: DETR with Improved Matching for Fast Convergence", arXiv:2412.04234, section 3.
    """

    name = "matchability_aware"
    alpha = 1.0
    gamma = 1.5

    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting, quality: Any = None) -> Any:
        """Return the matchability-aware loss per object, summed over queries and classes.

        Args:
            logits: `(batch, layers, queries, classes)` float32.
            classes: `(batch, layers, queries)` int32, the matched class, or the number of classes for none.
            num_boxes: scalar, the objects of the batch, at least 1.
            weighting: of the classes.
            quality: `(batch, layers, queries)` float32, the IoU of the pair's boxes.
        """
        is_class, gamma = ops.one_hot(classes, logits.shape[-1] + 1)[..., :-1], weighting.focal_gamma
        target = is_class * (quality**gamma)[..., None]
        weight = weighting.focal_alpha * ops.sigmoid(logits) ** gamma * (1 - is_class) + is_class
        return _weighted_cross_entropy(logits, target, weight, weighting) / num_boxes


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class IoUAware(Focal):
    """A sigmoid per class that learns a mean of its own probability and the IoU of the query's box with its object.

    Everything is computed from logarithms of sigmoids, which stay finite for logits of any size. The cost of the
    matching is that of the focal loss; as many answers are kept as there are queries.

    Source: Chen et al. 2024, "LW-DETR", arXiv:2406.03459, section 3.1 ("IoU-aware classification loss"), after Cai et
    al. 2023, "Align-DETR", arXiv:2304.07527.
    """

    name = "iou_aware"
    wants_quality = True
    limit = None
    least = 0.01  # of the target of a matched class

    def cost(self, logits: Any, wanted: Any) -> Any:
        """Return the focal loss for the class being there, less that for its absence."""
        probability = ops.sigmoid(wanted)
        there = FOCAL_COST_ALPHA * (1 - probability) ** FOCAL_COST_GAMMA * ops.softplus(-wanted)
        absent = (1 - FOCAL_COST_ALPHA) * probability**FOCAL_COST_GAMMA * ops.softplus(wanted)
        return there - absent

    def loss(self, logits: Any, classes: Any, num_boxes: Any, weighting: Weighting, quality: Any = None) -> Any:
        """Return the IoU-aware loss per object, summed over queries and classes.

        Args:
            logits: `(batch, layers, queries, classes)` float32.
            classes: `(batch, layers, queries)` int32, the matched class, or the number of classes for none.
            num_boxes: scalar, the objects of the batch, at least 1.
            weighting: of the classes; its α is the share of the probability in the target.
            quality: `(batch, layers, queries)` float32, the IoU of the pair's boxes.
        """
        class_weights = weighting.class_weights or (1.0,) * logits.shape[-1]
        losses = iou_aware_losses(
            logits,
            classes,
            quality,
            ops.convert_to_tensor(class_weights, "float32"),
            weighting.focal_alpha,
            weighting.focal_gamma,
            self.least,
        )
        return ops.sum(losses, axis=(0, 2)) / num_boxes


SHORT: dict[str, Classification] = {
    one.name: one for one in (Softmax(), Focal(), Varifocal(), MatchabilityAware(), IoUAware())
}


def classification_named(classification: str | Classification) -> Classification:
    """Return the object that a short name stands for; an object is returned unchanged.

    Raises:
        ValueError: neither such a name nor a `Classification`.
    """
    if isinstance(classification, Classification):
        return classification
    if not isinstance(classification, str) or classification not in SHORT:
        raise ValueError(f"classification must be one of {tuple(SHORT)}, not {classification!r}")
    return SHORT[classification]


def _weighted_cross_entropy(logits: Any, target: Any, weight: Any, weighting: Weighting) -> Any:
    """Return the cross-entropy of sigmoids in each layer, `(layers,)`; no gradient flows through the weights."""
    losses = ops.stop_gradient(weight) * (ops.softplus(logits) - target * logits)
    if weighting.class_weights is not None:
        losses = losses * ops.convert_to_tensor(weighting.class_weights, "float32")
    return _sums_of_layers(losses)


def _sums_of_layers(losses: Any) -> Any:
    """Return the sums of `(batch, layers, queries, classes)` for each layer, `(layers,)`.

    One query's first: added one by one, millions of small float32 numbers would be off by a part in a thousand.
    """
    return ops.sum(ops.sum(losses, axis=-1), axis=(0, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities that are as accurate, relative to their size, for small values as for large ones.

    Some are compared with each other.
    """
    with np.errstate(over="ignore"):  # of float32 below -88; the probability is 0
        return 1 / (1 + np.exp(-logits))
