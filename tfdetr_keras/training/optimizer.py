"""AdamW with DETR's settings: a tenth of the learning rate in the backbone, gradients clipped hard (DETR, section 4).

Two details differ from `keras.optimizers.AdamW` and are PyTorch's: epsilon is added to the bias-corrected root of the
second moment, not to the uncorrected root; and weight decay follows each group's own learning rate. A third is that of
the authors of RT-DETR, RF-DETR and D-FINE: the averages (`use_ema`) are of all floating state, statistics of batch
normalisation included, move with each step of the optimizer, and can follow the weights closely at first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from types import SimpleNamespace
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
        weight_decay: decoupled; of all variables that `weight_decay_exclude` does not name.
        weight_decay_exclude: which variables do not decay: `"norms"` (scales and shifts of normalisations), `"biases"`,
            `"embeddings"`, a part of the model as above, or such variables of a part (`"encoder/norms"`). By default
            all decay, as DETR's do.
        global_clipnorm: limit of the norm of all gradients together; None does not clip. With
            `gradient_accumulation_steps`, of the accumulated gradients.
        beta_1: decay of the mean of the gradients.
        beta_2: decay of the mean of their squares.
        epsilon: added to the root of the latter, bias-corrected. Gradients clipped to 0.1 are small: Keras' own default
            of 1e-7 would hold many weights back.
        ema_ramp_steps: with `use_ema`, steps τ of the optimizer over which the momentum of the averages rises: after t
            steps it is d·(1 − e^(−t/τ)), d being `ema_momentum`, and the averages start at the weights before the
            first step. With 0 it is d at once, and they start at those after it.
        ema_restart_at: with `use_ema`, number of batches after which the averages start anew from the weights, with
            their ramp; None for never.
        **kwargs: of `keras.optimizers.Adam`. With `gradient_accumulation_steps`, the averages move with the weights,
            not with every batch.

    Raises:
        ValueError: a learning rate, multiplier, weight decay or limit that is not finite or below 0; a limit of 0; a
            `weight_decay_exclude` that is no list of names; a ramp or a restart without averages.

    Source:
        Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101; DETR, section 4,
        "Technical details", and facebookresearch/detr, `main.py`.
    """

    use_ema: bool

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        weight_decay: float = 1e-4,
        global_clipnorm: float | None = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay_exclude: Sequence[str] = (),
        ema_ramp_steps: int = 0,
        ema_restart_at: int | None = None,
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
        if isinstance(weight_decay_exclude, str) or not all(isinstance(name, str) for name in weight_decay_exclude):
            raise ValueError(f"weight_decay_exclude must be a list of names, not {weight_decay_exclude!r}")
        for what, count, least in (("ema_ramp_steps", ema_ramp_steps, 0), ("ema_restart_at", ema_restart_at, 1)):
            if count is not None and not (_is_number(count) and count == int(count) and count >= least):
                raise ValueError(f"{what} must be a whole number of at least {least}, not {count!r}")
            if count and not kwargs.get("use_ema"):
                raise ValueError(f"{what}={count} needs averages: use_ema=True")
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
        self.weight_decay_exclude = tuple(weight_decay_exclude)
        self.ema_ramp_steps, self.ema_restart_at = int(ema_ramp_steps), ema_restart_at and int(ema_restart_at)
        self._is_gated = False
        # In an object, or Keras would take the model's variables for the optimizer's own.
        self._statistics = SimpleNamespace(variables=[])
        self._averages_of_statistics: list[Any] = []

    def average_statistics_of(self, statistics: Sequence[Any]) -> None:
        """Keep averages of some of a model's variables that are not trained, too: what `average_statistics` moves.

        A detector's `compile` calls this with the running statistics of its batch normalisation.

        Args:
            statistics: the variables.
        """
        if not self.built and self.use_ema:
            self._statistics.variables = list(statistics)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the averages and the moments, and find each variable's group."""
        if self.built:
            return
        groups = [self._group(variable.path) for variable in variables]
        self._multipliers = [1.0 if group is None else self.learning_rate_multipliers[group] for group in groups]
        for unused in sorted(set(self.learning_rate_multipliers).difference(groups)):
            logger.warning("learning_rate_multipliers: no trainable variable lies in %r", unused)
        self._decays = [
            not any(is_named(name, variable.path) for name in self.weight_decay_exclude) for variable in variables
        ]
        for name in self.weight_decay_exclude:
            if not any(is_named(name, variable.path) for variable in variables):
                logger.warning("weight_decay_exclude: no trainable variable is meant by %r", name)
        keeps = bool(self.use_ema)
        self.use_ema = False  # or Keras would make averages, which start at 0
        try:
            averages = [self._average_of(variable) for variable in variables] if keeps else []
            super().build(variables)
        finally:
            self.use_ema = keeps
        if keeps:
            self._model_variables_moving_average = averages
            self._averages_of_statistics = [self._average_of(variable) for variable in self._statistics.variables]

    def _average_of(self, variable: Any) -> Any:
        """Make the average of a variable, which starts at its value."""
        return self.add_variable(
            shape=variable.shape,
            initializer=lambda shape, dtype: ops.cast(ops.copy(variable.value), dtype),
            dtype=variable.dtype,
            aggregation="only_first_replica",  # where all have the same
            layout=getattr(variable, "_layout", None),
            name=f"{variable.path.replace('/', '_')}_average",
        )

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

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        """Accumulate gradients over replicas without the condition that `tf.distribute` cannot have in a step."""
        every = self.gradient_accumulation_steps
        if not every or number_of_replicas() == 1:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        is_step = (self._iterations + 1) % every == 0
        sums = [self._accumulated_gradients[self._get_variable_index(variable)] for variable in trainable_variables]
        means = [(gradient + so_far) / every for gradient, so_far in zip(grads, sums, strict=True)]
        self._backend_increment_gradient_accumulators(
            [ops.where(is_step, -so_far, gradient) for gradient, so_far in zip(grads, sums, strict=True)], sums
        )
        self._is_gated = True
        try:
            self._backend_update_step(self._clip_gradients(means), trainable_variables, self.learning_rate)
        finally:
            self._is_gated = False
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)

    def _clip_gradients(self, grads: Sequence[Any]) -> Any:
        """Clip gradients of different dtypes together, which TensorFlow refuses to add: heads are always float32."""
        dtypes = [None if one is None else keras.backend.standardize_dtype(one.dtype) for one in grads]
        known = [dtype for dtype in dtypes if dtype is not None]
        if len(set(known)) < 2:
            return super()._clip_gradients(grads)
        widest = keras.backend.result_type(*known)
        clipped = super()._clip_gradients([one if one is None else ops.cast(one, widest) for one in grads])
        return [one if dtype is None else ops.cast(one, dtype) for one, dtype in zip(clipped, dtypes, strict=True)]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable: first its decay, then the step of Adam."""
        dtype, index = variable.dtype, self._get_variable_index(variable)
        rate = ops.cast(learning_rate, dtype) * self._multipliers[index]
        gradient = ops.cast(gradient, dtype)
        mean, square = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, dtype)
        correction_1 = 1 - ops.power(ops.cast(self.beta_1, dtype), step)
        correction_2 = 1 - ops.power(ops.cast(self.beta_2, dtype), step)

        gate: Any = 1.0  # 0 where gradients are only accumulated
        if self._is_gated:
            gate = ops.cast((self._iterations + 1) % self.gradient_accumulation_steps == 0, dtype)
            rate = rate * gate
        self.assign_add(mean, (gradient - mean) * ((1 - self.beta_1) * gate))
        self.assign_add(square, (ops.square(gradient) - square) * ((1 - self.beta_2) * gate))
        if self.amsgrad:
            largest = self._velocity_hats[index]
            self.assign(largest, ops.maximum(largest, square))
            square = largest
        root = ops.sqrt(square / correction_2) + self.epsilon
        if self.decoupled_weight_decay and self._decays[index] and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * (rate * self.decoupled_weight_decay))
        self.assign_sub(variable, rate / correction_1 * mean / root)

    def average_statistics(self) -> None:
        """Move the averages of the statistics, after a step in which the model and the optimizer moved."""
        self._move_averages(self._statistics.variables, self._averages_of_statistics, self._iterations)

    def averages(self) -> list[tuple[Any, Any]]:
        """Return pairs of a variable of the model and its average, statistics included.

        Raises:
            ValueError: the optimizer keeps no averages, or none yet.
        """
        if not self.use_ema or not self.built:
            raise ValueError("the optimizer keeps no averages: give it use_ema=True, and train or build it first")
        own = zip(self._trainable_variables, self._model_variables_moving_average, strict=True)
        return [*own, *zip(self._statistics.variables, self._averages_of_statistics, strict=True)]

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Give the model the averages, as Keras' `fit` does at its end with `use_ema`; those of statistics, too."""
        super().finalize_variable_values(var_list)
        for variable, average in zip(self._statistics.variables, self._averages_of_statistics, strict=True):
            variable.assign(average)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {
            "weight_decay": self.decoupled_weight_decay,
            "learning_rate_multipliers": self.learning_rate_multipliers,
            "weight_decay_exclude": list(self.weight_decay_exclude),
            "ema_ramp_steps": self.ema_ramp_steps,
            "ema_restart_at": self.ema_restart_at,
        }

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Move the averages of the weights; Keras calls this in each step, before it counts the step."""
        self._move_averages(trainable_variables, self._model_variables_moving_average, self._iterations + 1)

    def _move_averages(self, variables: Sequence[Any], averages: Sequence[Any], batches: Any) -> None:
        """Move averages towards their variables by the share of the step that ended with the last batch, if one did.

        Args:
            variables: of the model.
            averages: one each.
            batches: number of batches so far, the last included.
        """
        if not averages:
            return
        share = self._share(batches)
        for variable, average in zip(variables, averages, strict=True):
            average.assign(average + ops.cast(share, average.dtype) * (variable - average))

    def _share(self, batches: Any) -> Any:
        """Return 1 − d·(1 − e^(−t/τ)) of the step t that ended with a batch; 0 if none did.

        A first step without ramp, and the first one after a restart, take the weights as they are.
        """
        every = self.gradient_accumulation_steps or 1
        step = batches // every
        copies = step == 1 if not self.ema_ramp_steps else ops.zeros((), "bool")
        if self.ema_restart_at is not None:
            restart = self.ema_restart_at // every
            is_restarted = step > restart
            copies = ops.logical_or(step == restart + 1, ops.logical_and(copies, ops.logical_not(is_restarted)))
            step = ops.where(is_restarted, step - restart, step)
        share = ops.convert_to_tensor(1.0 - self.ema_momentum, "float32")
        if self.ema_ramp_steps:
            share = share + self.ema_momentum * ops.exp(-ops.cast(step, "float32") / self.ema_ramp_steps)
        return ops.where(batches % every == 0, ops.where(copies, 1.0, share), 0.0)

    def _group(self, path: str) -> str | None:
        """Return the longest name of a group that is a part of a variable's path."""
        names = [name for name in self.learning_rate_multipliers if lies_in(path, name)]
        return max(names, key=len, default=None)


# Kinds of variables by the last step of their path, which is the name that its Keras layer gives each.
KINDS = {"norms": ("gamma", "beta"), "biases": ("bias",), "embeddings": ("embeddings",)}


def lies_in(path: str, part: str) -> bool:
    """Return whether a part of a model, one or several whole steps of a path, is in a variable's path."""
    return f"/{part.strip('/')}/" in f"/{path}/"


def is_named(name: str, path: str) -> bool:
    """Return whether a variable is meant by a part of a model, a kind of variables, or a kind within a part.

    Whole steps of a path count: authors' patterns such as `(?!.*norm|bn)` do not see a `bn` in the middle of a name,
    and so let some normalisations decay that they mean to leave out.

    Args:
        name: "backbone", "norms", or "backbone/norms", say.
        path: of the variable.
    """
    *part, last = name.strip("/").split("/")
    if last not in KINDS:
        return lies_in(path, name)
    return path.rsplit("/", 1)[-1] in KINDS[last] and (not part or lies_in(path, "/".join(part)))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
