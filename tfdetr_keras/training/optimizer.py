"""AdamW with DETR's settings: a tenth of the learning rate in the backbone, gradients clipped hard (DETR, section 4).

Two details differ from `keras.optimizers.AdamW` and are PyTorch's: epsilon is added to the bias-corrected root of the
second moment, not to the uncorrected root; and weight decay follows each group's own learning rate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras
from keras import ops

from tfdetr_keras.backend.replicas import number_of_replicas, sum_over_replicas
from tfdetr_keras.models.recipe import RECIPE

logger = logging.getLogger(__name__)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class AdamW(keras.optimizers.Adam):
    """AdamW as PyTorch computes it, with learning rates by group of variables; the defaults are DETR's recipe.

    Everything else of a Keras optimizer works as usual: schedules, `use_ema`, `gradient_accumulation_steps`,
    `exclude_from_weight_decay`, saving.

    Args:
        learning_rate: a number or a schedule, for the variables in no group.
        learning_rate_multipliers: name of a part of the model → factor on the learning rate of its variables. A name is
            one or several whole steps of a variable's path (`"backbone"`, `"encoder/layer0"`); if several match, the
            longest is used. By default `{"backbone": 0.1}`.
        weight_decay: decoupled, for all variables, those of normalisations and biases included.
        global_clipnorm: limit of the norm of all gradients together; None does not clip. With
            `gradient_accumulation_steps`, of the accumulated gradients.
        beta_1: decay of the mean of the gradients.
        beta_2: decay of the mean of their squares.
        epsilon: added to the root of the latter, bias-corrected. Gradients clipped to 0.1 are small: Keras' own default
            of 1e-7 would hold many weights back.
        **kwargs: of `keras.optimizers.Adam`.

    Raises:
        ValueError: a learning rate, multiplier, weight decay or limit that is not finite or below 0; a limit of 0.

    Source:
        Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101; DETR, section 4,
        "Technical details", and facebookresearch/detr, `main.py`.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        weight_decay: float = 1e-4,
        global_clipnorm: float | None = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "adamw",
        **kwargs: Any,
    ) -> None:
        if learning_rate_multipliers is None:
            learning_rate_multipliers = {"backbone": RECIPE["backbone_multiplier"]}
        for value, what in (
            (weight_decay, "weight_decay"),
            *((factor, f"learning_rate_multipliers[{part!r}]") for part, factor in learning_rate_multipliers.items()),
        ):
            if not _is_number(value) or value < 0:
                raise ValueError(f"{what}={value!r} must not be below 0, NaN or infinite")
        if isinstance(learning_rate, Real) and not (_is_number(learning_rate) and float(learning_rate) >= 0):
            raise ValueError(f"learning_rate must be a finite number of at least 0, not {learning_rate!r}")
        limits = {"global_clipnorm": global_clipnorm, **{name: kwargs.get(name) for name in ("clipnorm", "clipvalue")}}
        for what, limit in limits.items():
            if limit is not None and not (_is_number(limit) and limit > 0):
                raise ValueError(f"{what} must be a finite number above 0, or None, not {limit!r}")
        if clipping := sorted({"clipnorm", "clipvalue"} & {key for key, value in kwargs.items() if value is not None}):
            global_clipnorm = None
            logger.info("%s instead of global_clipnorm", clipping[0])
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            global_clipnorm=global_clipnorm,
            name=name,
            **kwargs,
        )
        # Not Keras' attribute of that name, from which it would decay every variable at the same rate.
        self.decoupled_weight_decay = weight_decay
        self.learning_rate_multipliers = dict(learning_rate_multipliers)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the moments, and find each variable's group."""
        if not self.built:
            groups = [self._group(variable.path) for variable in variables]
            self._multipliers = [1.0 if group is None else self.learning_rate_multipliers[group] for group in groups]
            for unused in sorted(set(self.learning_rate_multipliers).difference(groups)):
                logger.warning("learning_rate_multipliers: no trainable variable lies in %r", unused)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update all variables, with gradients clipped as those of the whole batch.

        Under a `tf.distribute` strategy Keras clips the gradients of each replica and adds up the results. Here they
        are added up first; each replica then contributes the same share of the sum, clipped to its share of the limit.
        """
        replicas, limits = number_of_replicas(), ("clipnorm", "global_clipnorm", "clipvalue")
        before = {name: getattr(self, name) for name in limits}
        if replicas == 1 or not any(before.values()):
            super().apply(grads, trainable_variables)
            return
        grads = [gradient if gradient is None else sum_over_replicas(gradient) / replicas for gradient in grads]
        try:
            for name, limit in before.items():
                setattr(self, name, limit and limit / replicas)
            super().apply(grads, trainable_variables)
        finally:
            for name, limit in before.items():
                setattr(self, name, limit)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable: first its decay, then the step of Adam."""
        dtype, index = variable.dtype, self._get_variable_index(variable)
        rate = ops.cast(learning_rate, dtype) * self._multipliers[index]
        gradient = ops.cast(gradient, dtype)
        mean, square = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, dtype)
        correction_1 = 1 - ops.power(ops.cast(self.beta_1, dtype), step)
        correction_2 = 1 - ops.power(ops.cast(self.beta_2, dtype), step)

        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
        if self.amsgrad:
            largest = self._velocity_hats[index]
            self.assign(largest, ops.maximum(largest, square))
            square = largest
        root = ops.sqrt(square / correction_2) + self.epsilon
        if self.decoupled_weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * (rate * self.decoupled_weight_decay))
        self.assign_sub(variable, rate / correction_1 * mean / root)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {
            "weight_decay": self.decoupled_weight_decay,
            "learning_rate_multipliers": self.learning_rate_multipliers,
        }

    def _group(self, path: str) -> str | None:
        """Return the longest name of a group that is a part of a variable's path."""
        names = [name for name in self.learning_rate_multipliers if f"/{name.strip('/')}/" in f"/{path}/"]
        return max(names, key=len, default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
