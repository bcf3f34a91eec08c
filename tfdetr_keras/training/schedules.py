"""The learning rate over a run: warm-up, then a cosine, a step, or a constant."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdetr_keras.training.settings import Settings

# The paper's long schedule: 500 epochs, the last 100 at a tenth; its short one: 300 and 100.
STEP_AT, STEP_FACTOR = 0.75, 0.1


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Any schedule, with a learning rate that first rises to it from 0, step by step.

    Args:
        schedule: the schedule, whose step 0 is that of the run.
        steps: of the warm-up.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int) -> None:
        super().__init__()
        self.schedule, self.steps = schedule, steps

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of the step after `step` others."""
        rate = ops.convert_to_tensor(self.schedule(step))
        return rate * ops.minimum((ops.cast(step, rate.dtype) + 1) / self.steps, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        """Return the schedule that `get_config` described."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def learning_rate(settings: Settings, batches_per_epoch: int) -> Any:
    """Return the learning rate of a run, as a Keras schedule over its batches, whether accumulated or not.

    Args:
        settings: of the run, with durations as whole numbers, see `tfdetr_keras.training.durations.scaled`.
        batches_per_epoch: batches of one epoch.
    """
    highest = settings.learning_rate
    steps = settings.epochs * batches_per_epoch
    schedules = keras.optimizers.schedules
    schedule = {
        "cosine": schedules.CosineDecay(highest, steps),
        "step": schedules.PiecewiseConstantDecay([round(steps * STEP_AT)], [highest, highest * STEP_FACTOR]),
        "constant": schedules.PiecewiseConstantDecay([steps], [highest, highest]),
    }[settings.schedule]
    return WarmUp(schedule, int(settings.warmup_steps)) if settings.warmup_steps else schedule
