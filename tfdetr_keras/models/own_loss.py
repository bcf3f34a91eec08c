"""A Keras model that brings its loss along: what `compile` may be given, and what would be ignored or cannot work."""

from __future__ import annotations

from typing import Any

import keras


class OwnLossModel(keras.Model):
    """A model whose `compute_loss` is its own, so that `compile` takes an optimizer and no loss."""

    loss_advice = "the loss is the model's own"
    optimizer: Any

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **options: Any,
    ) -> None:
        """Configure training: Keras' `compile` without a loss and without metrics, which are the model's own.

        Args:
            optimizer: a Keras optimizer or its name.
            loss: must be None.
            loss_weights: must be None.
            metrics: must be None or empty.
            weighted_metrics: must be None or empty.
            **options: `run_eagerly`, `steps_per_execution`, `jit_compile` and `auto_scale_loss`, see `keras.Model`.

        Raises:
            ValueError: a loss, weights of losses, or metrics are given.
        """
        for name, value in (("loss", loss), ("loss_weights", loss_weights)):
            if value is not None:
                raise ValueError(f"compile({name}={value!r}): leave {name} out, {self.loss_advice}")
        for name, value in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
            if value:
                raise ValueError(
                    f"compile({name}={value!r}): leave {name} out. Keras' metrics compare each output with a target of "
                    "the same name, and a detector's queries have none. For COCO's AP give fit the callback "
                    "td.training.AveragePrecision; for a figure of your own override compute_metrics in a subclass"
                )
        super().compile(optimizer=optimizer, **options)
        if hasattr(self.optimizer, "average_statistics_of"):
            self.optimizer.average_statistics_of(self._running_statistics())

    def _running_statistics(self) -> list[Any]:
        """Return the means and variances that batch normalisation keeps for inference."""
        normalizations = [
            layer for layer in self._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)
        ]
        return [variable for layer in normalizations for variable in (layer.moving_mean, layer.moving_variance)]

    def train_step(self, *arguments: Any) -> Any:
        """Train on one batch, as Keras does; then move the averages of the running statistics, if there are any."""
        result = super().train_step(*arguments)
        if not hasattr(self.optimizer, "average_statistics"):
            return result
        if keras.backend.backend() != "jax":
            self.optimizer.average_statistics()
            return result
        logs, (trained, others, of_optimizer, metrics) = result  # on JAX, values in place of variables
        values = [*zip(self.non_trainable_variables, others, strict=True)]
        values += zip(self.optimizer.variables, of_optimizer, strict=True)
        with keras.StatelessScope(state_mapping=values) as scope:
            self.optimizer.average_statistics()
        of_optimizer = [scope.get_current_value(variable) for variable in self.optimizer.variables]
        return logs, (trained, others, of_optimizer, metrics)

    def compile_from_config(self, config: Any) -> None:
        """Compile as the model was when it was saved; called by Keras when it loads a `.keras` file.

        Earlier versions let a loss and metrics be saved that had no effect; these are left out.
        """
        options = keras.saving.deserialize_keras_object(config)
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            options.pop(name, None)
        self.compile(**options)
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)
