"""All settings of a training run in one place: for Python, for the command line, and for its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args

from tfdetr_keras.models.recipe import RECIPE
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, is_pair, knows_padding, preprocessing_for
from tfdetr_keras.training.durations import UNITS, check_duration

Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["float32", "mixed_bfloat16"]
BatchNorm = Literal["frozen", "trainable"]
AUGMENTATIONS = ("paper", "strong", "flip", "none")
OWN: Any = None  # of a setting: as the model's recipe has it, which `Settings.resolved` writes out
SEEDS = 2**32  # of NumPy's generator, which is one of those that are set

NO_LIMIT = 1e9  # as a clipping norm, which no gradients reach

# Which fields are of which kind, for the checks.
_COUNTS = (
    *("epochs", "batch_size", "gradient_accumulation_steps", "evaluate_every"),
    *("max_boxes", "num_queries", "steps_per_epoch"),
)
_NUMBERS_FROM_0 = ("pretraining_epochs", "seed", "num_denoising")
_REALS = {
    "learning_rate": (0, math.inf, "a finite number above 0"),
    "weight_decay": (0, math.inf, "a finite number of at least 0"),
    "backbone_multiplier": (0, math.inf, "a finite number of at least 0"),
    "global_clipnorm": (0, math.inf, f"a finite number above 0 ({NO_LIMIT:g} for no limit), or None"),
    "layer_decay": (0, 1 + 1e-9, "above 0 and at most 1"),
    "ema_momentum": (0, 1, "in [0, 1), or None"),
    "dropout": (0, 1, "in [0, 1), or None"),
}
_ABOVE_0 = ("learning_rate", "global_clipnorm", "layer_decay")
# Which fields are by default what the authors of the model train with, `model.recipe`.
OF_RECIPE = (
    *("augmentation", "multiscale", "plain_epochs", "learning_rate", "backbone_multiplier", "layer_decay"),
    *("learning_rate_multipliers", "schedule", "warmup_steps", "weight_decay", "weight_decay_exclude"),
    *("global_clipnorm", "ema_momentum", "ema_ramp_steps", "ema_restart_after"),
)
# Which a recipe may say, too; by default they are as the source has them.
OF_SOURCE = ("freeze", "batch_norm", "dropout")
_OPTIONAL = (
    *OF_RECIPE,
    *("max_boxes", "num_queries", "num_denoising", "steps_per_epoch", "dropout", "batch_norm"),
    *("jit_compile", "keep_head"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a training run; the defaults suit fine-tuning a published DETR on some thousand photographs.

    If augmentation, learning rates, schedule, warm-up, weight decay, clipping or averaging is None, it is taken from
    `model.recipe`, which is how the authors of the model train it. Their durations are for long runs; in a short one
    they are shares of it, see `tfdetr_keras.training.durations`, which the log and the report tell. A duration is a
    whole number, in the unit of its name, or a text like "2 epochs" or "300 steps".

    Args:
        epochs: passes over the training records.
        batch_size: images a batch.
        size: to which images are resized, pixels, if other than the source's, see `td.Preprocessing`.
        pad_to: (height, width) of a fixed canvas, or "buckets" for a few of them, if other than the source's.
        max_boxes: rows of the targets; by default the most objects in an image of the batch.
        augmentation: "paper" (DETR's), "strong" (RT-DETR's), "flip", "none", or a function as
            `tfdetr_keras.data.prepare` takes it.
        multiscale: whether each batch is resized to one of several sizes, 0.75 to 1.25 of the images' (RT-DETR's); or
            the factors, of which one that is listed twice is twice as frequent.
        plain_epochs: epochs at the end that only mirror images, without strong augmentation and several sizes.
        color_jitter: whether colours are changed at random.
        seed: of random weights, dropout, shuffling and augmentation. The program's own seeds are set to it.
        steps_per_epoch: batches an epoch, if it is not one pass over the records, e.g. many passes over few.
        random_weights: whether to start from the architecture of the source alone.
        num_queries: object queries, if other than the source's.
        num_denoising: objects that all groups of denoising queries together hold, if other than the source's; 0 trains
            without. Of members that have them, as RT-DETR.
        keep_head: True keeps the class head of the source by position, whatever its classes are called, and False
            replaces all of it by random weights; by default the rows of classes of the same name are kept.
        masks: whether a detector gets a mask head, which of a DETR alone is trained unless `freeze` says otherwise: the
            paper's second stage. It has no effect on a source that has a mask head.
        freeze: parts that are not trained, e.g. "backbone" or "stem+stage1" ("" for none); by default the source's,
            which for published weights are stem and first stage, and with `masks` the whole detector.
        batch_norm: "frozen" or "trainable", of all batch normalisation; or a mapping of the backbone's parts to one of
            these, in which all else stays as it is; by default the source's, and trainable from random weights.
            Trainable batch normalisation in a part that `freeze` names is frozen with it.
        dropout: of every residual branch; by default the source's.
        pretraining_epochs: epochs in which the backbone alone learns first (`BackbonePretraining`), for random weights.
        learning_rate: the highest, of everything but the backbone (DETR: 1e-4).
        backbone_multiplier: factor on the learning rate in the backbone (DETR: 0.1).
        layer_decay: factor on the learning rate from one part of the backbone to the one before it: the last part's is
            multiplied once, the one before twice, and so on (RF-DETR: 0.8); 1 for none.
        learning_rate_multipliers: factors for further parts of the model, by their path: `{"class_head": 2.0}`. They
            count instead of those above where their path is longer.
        schedule: "cosine" to 0 (by default, of DETR); "step", a tenth for the last quarter of the run (the paper: the
            last 100 of 300 or 400 epochs); or "constant".
        warmup_steps: batches over which the learning rate rises from 0 (DETR: 0).
        weight_decay: decoupled (DETR: 1e-4).
        weight_decay_exclude: what does not decay: "norms", "biases", "embeddings", parts by their path, or both as in
            "encoder/norms" (DETR: all decays).
        global_clipnorm: limit of the norm of all gradients together (DETR: 0.1); `NO_LIMIT`, 1e9, for none.
        gradient_accumulation_steps: batches whose gradients are averaged before each step of the optimizer.
        ema_momentum: of an average of the weights, which is evaluated and kept instead of them, e.g. 0.999; 0 for
            no average (DETR). Statistics of batch normalisation are averaged, too.
        ema_ramp_steps: steps of the optimizer in which the momentum rises, see `td.AdamW` (RT-DETR: 2000).
        ema_restart_after: epochs after which the average starts anew from the weights (D-FINE: as the plain epochs
            begin); 0 for never.
        evaluate_every: epochs from one measurement of AP to the next.
        precision: "float32", or "mixed_bfloat16" on hardware that has it.
        jit_compile: whether steps are compiled by XLA. By default on JAX, and on TensorFlow if there is an
            accelerator and shapes are static, by `pad_to` and `max_boxes`; on CPUs plain graphs are faster.
        recompute: whether layers are computed again in the backward pass instead of kept: less memory, a quarter more
            time.
        tensorboard: whether to write TensorBoard's events as well.
        size_rule: by which images are resized, if other than the source's.
        preprocessing: how images are prepared, a `td.Preprocessing` or the mapping of one; by default the source's.
            `size`, `pad_to` and `size_rule` override fields of it. The trained model keeps it.

    Raises:
        ValueError: a value that cannot work.
    """

    epochs: int = 50
    batch_size: int = 4
    size: tuple[int, int] | None = None
    pad_to: tuple[int, int] | Literal["buckets"] | None = None
    max_boxes: int | None = None
    augmentation: Literal["paper", "strong", "flip", "none"] | Callable[..., Any] = OWN
    multiscale: bool | Sequence[float] = OWN
    plain_epochs: int | str = OWN
    color_jitter: bool = False
    seed: int = 0
    steps_per_epoch: int | None = None
    random_weights: bool = False
    num_queries: int | None = None
    num_denoising: int | None = None
    keep_head: bool | None = None
    masks: bool = False
    freeze: str | Sequence[str] | None = None
    batch_norm: BatchNorm | Mapping[str, BatchNorm] | None = None
    dropout: float | None = None
    pretraining_epochs: int = 0
    learning_rate: float = OWN
    backbone_multiplier: float = OWN
    layer_decay: float = OWN
    learning_rate_multipliers: Mapping[str, float] = OWN
    schedule: Schedule = OWN
    warmup_steps: int | str = OWN
    weight_decay: float = OWN
    weight_decay_exclude: Sequence[str] = OWN
    global_clipnorm: float = OWN
    gradient_accumulation_steps: int = 1
    ema_momentum: float = OWN
    ema_ramp_steps: int | str = OWN
    ema_restart_after: int | str = OWN
    evaluate_every: int = 1
    precision: Precision = "float32"
    jit_compile: bool | None = None
    recompute: bool = False
    tensorboard: bool = False
    size_rule: SizeRule | None = None
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        if self.keep_head and self.random_weights:
            raise ValueError(
                "keep_head keeps the class head of the source, but random_weights keeps nothing: leave one out"
            )
        for name in ("size", "pad_to", "freeze", "multiscale", "weight_decay_exclude"):  # JSON has lists for tuples
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for names, limit in ((_COUNTS, 1), (_NUMBERS_FROM_0, 0)):
            for name in names:
                value = getattr(self, name)
                if value is None and name in _OPTIONAL:
                    continue
                if not _is_whole(value):
                    raise ValueError(f"{name} must be a whole number of at least {limit}, not {value!r}")
                if name == "seed" and not 0 <= value < SEEDS:
                    raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, not {value}")
                if value < limit:
                    raise ValueError(f"{name} must be at least {limit}, not {value}")
                object.__setattr__(self, name, int(value))  # of NumPy's, which JSON does not know
        for name in UNITS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_duration(name, getattr(self, name)))
        for name, (least, below, wanted) in _REALS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not _is_real(value) or not (least <= value < below) or (name in _ABOVE_0 and value == 0):
                raise ValueError(f"{name} must be {wanted}, not {value!r}")
            object.__setattr__(self, name, float(value))
        for name in ("color_jitter", "random_weights", "masks", "tensorboard", "jit_compile", "keep_head", "recompute"):
            value = getattr(self, name)
            if not _is_bool(value) and not (value is None and name in _OPTIONAL):
                raise ValueError(f"{name} must be True or False, not {value!r}")
            object.__setattr__(self, name, value if value is None else bool(value))
        for name, choices in (("schedule", Schedule), ("precision", Precision), ("batch_norm", BatchNorm)):
            if name == "batch_norm" and isinstance(self.batch_norm, Mapping):
                _check_words(self.batch_norm, get_args(BatchNorm))
                continue
            value = getattr(self, name)
            if value not in get_args(choices) and not (value is None and name in _OPTIONAL):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")
        if self.augmentation is not None and not callable(self.augmentation) and self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, or a function, not {self.augmentation!r}"
            )
        self._check_groups()
        parts = self.freeze if isinstance(self.freeze, tuple) else (self.freeze,)
        if self.freeze is not None and not all(isinstance(part, str) for part in parts):
            raise ValueError(f'freeze must be names of parts such as "stem+stage1", not {self.freeze!r}')
        canvas: Any = self.pad_to
        if canvas is not None and canvas != "buckets" and not (is_pair(canvas) and min(canvas) >= 1):
            raise ValueError(
                f'pad_to must be None, (height, width) of at least 1 pixel, or "buckets", not {_listed(self.pad_to)}'
            )
        for name in ("size", "pad_to"):
            if is_pair(getattr(self, name)):
                object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        if self.preprocessing is not None:
            object.__setattr__(self, "preprocessing", Preprocessing.of(self.preprocessing))
        self.preprocessing_of(None)  # what can be no size is refused before there is a model

    def _check_groups(self) -> None:
        """Check what names parts of the model, and the factors of the sizes."""
        multipliers = self.learning_rate_multipliers
        if multipliers is not None:
            if not isinstance(multipliers, Mapping) or not all(isinstance(part, str) for part in multipliers):
                raise ValueError(
                    f"learning_rate_multipliers must be factors by the path of a part, not {multipliers!r}"
                )
            for part, factor in multipliers.items():
                if not _is_real(factor) or factor < 0:
                    raise ValueError(
                        f"learning_rate_multipliers must be finite numbers of at least 0, not {factor!r} for {part!r}"
                    )
            object.__setattr__(self, "learning_rate_multipliers", {part: float(x) for part, x in multipliers.items()})
        excluded = self.weight_decay_exclude
        if excluded is not None and not (
            isinstance(excluded, tuple) and all(isinstance(name, str) for name in excluded)
        ):
            raise ValueError(
                f'weight_decay_exclude must be a list of names such as "norms" and "biases", not {excluded!r}'
            )
        sizes = self.multiscale
        if sizes is None:
            return
        if _is_bool(sizes):
            object.__setattr__(self, "multiscale", bool(sizes))
        elif not isinstance(sizes, tuple) or not sizes or not all(_is_real(size) and size > 0 for size in sizes):
            raise ValueError(
                f"multiscale must be True, False or factors above 0 such as (0.75, 1, 1.25), not {sizes!r}"
            )
        else:
            object.__setattr__(self, "multiscale", tuple(map(float, sizes)))

    def preprocessing_of(self, model: Any) -> Preprocessing:
        """Return how images are prepared in a run that starts from a model; without the model's buckets."""
        if self.pad_to == "buckets" and not knows_padding(model):
            raise ValueError(f'pad_to="buckets" pads images, but {model.title} knows no padding: leave it out')
        canvas = None if self.pad_to == "buckets" else self.pad_to
        chosen = preprocessing_for(model, self.preprocessing, self.size, canvas, self.size_rule)
        return dataclasses.replace(chosen, pad_to=None) if self.pad_to == "buckets" else chosen

    def resolved(self, model: Any) -> Settings:
        """Return the same settings with the model's own values filled in, as a run's folder keeps them.

        Args:
            model: that the run starts from; None for a published DETR.

        Raises:
            ValueError: the model's recipe has an unknown setting, or an invalid value.
        """
        buckets: Any = "buckets" if self.pad_to == "buckets" else None
        preprocessing = self.preprocessing_of(model)
        own: dict[str, Any] = {"size": None, "pad_to": buckets, "size_rule": None, "preprocessing": preprocessing}
        return dataclasses.replace(self, **own, **self.of_recipe(model))

    def of_recipe(self, model: Any) -> dict[str, Any]:
        """Return the values of a model's recipe for settings that are not set; None stands for a published DETR.

        A recipe does not freeze anything if a mask head is trained: then only the head is trained, unless `freeze` is
        set.

        Raises:
            ValueError: the recipe has a setting that no recipe may have.
        """
        recipe = getattr(model, "recipe", RECIPE)
        if unknown := sorted(set(recipe).difference(OF_RECIPE, OF_SOURCE)):
            known = ", ".join((*OF_RECIPE, *OF_SOURCE))
            raise ValueError(f"the model's recipe has {', '.join(unknown)}, but may only have {known}")
        return {
            name: value
            for name, value in {**RECIPE, **recipe}.items()
            if getattr(self, name) is None and not (name == "freeze" and self.masks)
        }

    def compilation(self, preprocessing: Preprocessing) -> bool | Literal["auto"]:
        """Return the value of `compile(jit_compile=…)`; Keras' "auto" knows backends and devices.

        Args:
            preprocessing: of the run, see `preprocessing_of`.
        """
        import keras  # here, since the command line reads the defaults before it knows that it will train

        if self.jit_compile is not None:
            return self.jit_compile
        static = preprocessing.pad_to is not None and self.max_boxes is not None
        return "auto" if static or keras.backend.backend() == "jax" else False

    def evaluation(self, preprocessing: Preprocessing) -> dict[str, Any]:
        """Return how a run measures: `preprocessing` and `batch_size` of `tfdetr_keras.evaluation.evaluate_detections`.

        Images are measured as the model will be used: each by itself, unless training has one canvas for all.

        Args:
            preprocessing: of the run, see `preprocessing_of`.
        """
        import keras  # here, since the command line reads the defaults before it knows that it will train

        if keras.backend.backend() == "jax":  # which would compile again for each size of images
            preprocessing = preprocessing.on_one_canvas()
        batch_size = 1 if preprocessing.pad_to is None else self.batch_size
        return {"preprocessing": preprocessing, "batch_size": batch_size}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings given by name.

        Raises:
            ValueError: an unknown name, or a value that cannot work.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values).difference(known)):
            raise ValueError(
                f"{', '.join(unknown)}: not a setting of a training run; the settings are {', '.join(known)}"
            )
        return cls(**values)


def _check_words(batch_norm: Mapping[str, Any], words: Sequence[str]) -> None:
    for part, word in batch_norm.items():
        if word not in words:
            raise ValueError(f"batch_norm must be one of {', '.join(words)} for {part!r}, not {word!r}")


def check_against_steps(settings: Settings, steps_per_epoch: int) -> None:
    """Raise if a setting lies beyond the end of a run, and so would have no effect or not the intended one.

    Args:
        settings: of the run, with durations as whole numbers, see `scaled`.
        steps_per_epoch: batches of an epoch.

    Raises:
        ValueError: warm-up or accumulation take more steps than the run has, or the averages restart at its end.
    """
    steps = settings.epochs * steps_per_epoch
    for name, effect in (
        ("plain_epochs", "no epoch would be augmented"),
        ("ema_restart_after", "the averages would never start anew"),
    ):
        if (getattr(settings, name) or 0) > settings.epochs:
            raise ValueError(
                f"{name} must be at most {settings.epochs}, the epochs of the run, not {getattr(settings, name)}: "
                f"{effect}"
            )
    for name, effect in (
        ("gradient_accumulation_steps", "no weight would ever move"),
        ("warmup_steps", "the learning rate would never be reached"),
    ):
        if (getattr(settings, name) or 0) > steps:
            raise ValueError(
                f"{name} must be at most {steps}, the steps of the run ({settings.epochs} epochs of "
                f"{steps_per_epoch}), not {getattr(settings, name)}: {effect}"
            )


def _is_bool(value: Any) -> bool:
    """Return whether a value is Python's or NumPy's bool.

    NumPy is not loaded for this: the command line reads the defaults first.
    """
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not _is_bool(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not _is_bool(value) and math.isfinite(value)


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if is_pair(value) else repr(value)
