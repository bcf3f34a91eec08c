"""A whole training run in one call: model, recipe, AP, checkpoints, and a folder with figures and a report."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.backend.full_disk import told_if_full
from tfdetr_keras.backend.processes import gather, number_of_processes, process_index
from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.class_names import tidy_names
from tfdetr_keras.data.multiscale import MULTIPLE, MULTISCALE, scaled_side
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.quantization import check_trainable
from tfdetr_keras.preprocessing import Preprocessing
from tfdetr_keras.training.checkpoint import Checkpoint
from tfdetr_keras.training.crowding import tell_crowded_images, watch_crowding
from tfdetr_keras.training.durations import scaled
from tfdetr_keras.training.fingerprint import count, fingerprint
from tfdetr_keras.training.going_on import (
    CHANGEABLE,
    as_begun,
    counts_in_words,
    records_before,
    refuse_other_data,
    refuse_other_settings,
)
from tfdetr_keras.training.groups import learning_rate_multipliers
from tfdetr_keras.training.interrupt import StopAtInterrupt
from tfdetr_keras.training.memory import advice_on_memory
from tfdetr_keras.training.non_finite import StopAtNonFiniteLoss
from tfdetr_keras.training.optimizer import AdamW
from tfdetr_keras.training.pretraining import BackbonePretraining
from tfdetr_keras.training.progress import Progress
from tfdetr_keras.training.reporting import Reporting
from tfdetr_keras.training.run_folder import RunFolder
from tfdetr_keras.training.schedules import learning_rate
from tfdetr_keras.training.settings import NO_LIMIT, Settings, check_against_steps
from tfdetr_keras.training.starting_model import starting_model

logger = logging.getLogger(__name__)

PRETRAINING_LEARNING_RATE = 2e-3


def fit_detector(
    records: tf.data.Dataset,
    class_names: Sequence[str],
    out: str | Path,
    validation: tf.data.Dataset | None = None,
    source: Any = "facebook/detr-resnet-50",
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: Mapping[str, Any] | None = None,
    accept_changed_data: bool = False,
    **settings: Any,
) -> RunFolder:
    """Train a detector on records and keep everything of the run in a folder.

    A `DETRForSegmentation` is trained with masks, and so is a detector with `masks=True`: the paper's second stage.

    A run that was stopped or killed continues with `resume=True` from its last complete epoch, and ends with the same
    weights as without the interruption. While a process trains in a folder, no other may.

    Args:
        records: to train on, see `tfdetr_keras.data.record`; for segmentation read with masks.
        class_names: name of each label, put on one line and made distinct, see `tidy_names`.
        out: the folder of the run, see `tfdetr_keras.training.run_folder` for what it holds.
        validation: records to measure AP on after each epoch, and for segmentation mask AP; the best model is then
            chosen by it. Without them the best model is that of least loss.
        source: the starting model: whatever `DETR.from_pretrained` takes, or the name of a preset for random weights.
        resume: whether to continue the run in `out`; if there is none, a new one begins.
        callbacks: further callbacks of `fit`, which run after those of the run itself.
        data: a note for the run's `config.json` on how the records can be read again.
        accept_changed_data: whether to continue although the records differ from those of the run in their number,
            their names or their annotations, as far as this is known without decoding images. The report then says so.
        **settings: see `tfdetr_keras.training.Settings`.

    The folder holds the run from the end of its first epoch on. If that is not reached, nothing is left of the run.

    Returns:
        The folder, with `metrics` and `load_model()`, the best model.

    Raises:
        ValueError: bad records or settings; records without masks for segmentation; a folder that holds a run already
            or in which another process trains; when resuming, a run of other settings or records, of more epochs, with
            a damaged state or without one beside its results; a loss that is not finite, with the ids of the images, or
            weights that are not finite. The last checkpoint is then unchanged.
        FullDiskError: the disk has no room; likewise.
        KeyboardInterrupt: at Ctrl-C, with a message on how to resume.

    Source:
        The recipe is that of DETR, section 4 and appendix A.4.
    """
    chosen, class_names = Settings.of(settings), tidy_names(class_names)
    if chosen.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("to write TensorBoard's events, install it: pip install 'tfdetr-keras[tensorboard]'")
    run = RunFolder(out)
    if not resume:
        run.refuse_other_run()
    with told_if_full(run.path), _told_what_is_left(run):
        with run.held() if process_index() == 0 else contextlib.nullcontext():
            _train(run, records, class_names, validation, source, resume, callbacks, data, accept_changed_data, chosen)
        gather(None)  # until the files are written
    return run


@contextlib.contextmanager
def _told_what_is_left(run: RunFolder) -> Iterator[None]:
    """Add to a `KeyboardInterrupt` (Ctrl-C) what is left of a run and how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        left = "no epoch was finished, and nothing is left of it"
        if run.state_path().exists():
            left = f"{run.path} keeps all finished epochs, fit_detector(…, resume=True) continues from them"
        raise KeyboardInterrupt(left) from None


def _train(
    run: RunFolder,
    records: tf.data.Dataset,
    class_names: Sequence[str],
    validation: tf.data.Dataset | None,
    source: Any,
    resume: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    data: Mapping[str, Any] | None,
    accept_changed_data: bool,
    chosen: Settings,
) -> None:
    """Train in the run's folder; arguments and errors are those of `fit_detector`."""
    if resume:
        run.refuse_lost_state()
    else:
        run.refuse_other_run()  # another process may have begun one, before the folder was held
    # The first worker's word counts, and is heard by all before it writes what the others would find.
    going_on = gather(resume and run.state_path().exists())[0]
    keras.utils.set_random_seed(chosen.seed)
    model = run.new_model() if going_on else starting_model(source, class_names, chosen)
    given, chosen = chosen, chosen.resolved(model)
    model.preprocessing = chosen.preprocessing_of(model)
    check_trainable(model)
    _check_workers(chosen)
    _check_masks(model, training=records, validation=validation)
    found = fingerprint(records)
    noted = {"training": found, "validation": None if validation is None else fingerprint(validation)}
    changed = going_on and refuse_other_data(run, noted, accept_changed_data)
    number = found.images
    images = 0 if noted["validation"] is None else noted["validation"].images
    if number < chosen.batch_size:
        raise ValueError(f"{number} records do not fill one training batch of {chosen.batch_size}: lower batch_size")
    steps = chosen.steps_per_epoch or max(1, number // chosen.batch_size)
    chosen, shortened = scaled(chosen, given, steps)
    if going_on:
        chosen = as_begun(run, chosen, given)
        refuse_other_settings(run, class_names, chosen)
    check_against_steps(chosen, steps)
    model.config.check_canvas(*_smallest_canvas(model.preprocessing, chosen))
    model.recompute = chosen.recompute
    model.compile(optimizer=_optimizer(model, chosen, steps), jit_compile=chosen.compilation(model.preprocessing))
    masks = model.has_masks
    checkpoint = Checkpoint(
        run.path,
        # A frozen detector's boxes stay as they are.
        monitor="loss" if validation is None else "val_mask_AP" if masks else "val_AP",
        mode="min" if validation is None else "max",
        averaged=bool(chosen.ema_momentum),
    )
    done = checkpoint.restore(model)
    if chosen.epochs < done:
        raise ValueError(f"epochs must be at least {done}, which {run.path} has done already, not {chosen.epochs}")
    if going_on and process_index() == 0:
        others: dict[str, Any] = {} if data is None else {"data": data, "folder": str(run.path.absolute())}
        if changed or "records" not in run.config():
            others["records"] = {part: one and one.as_json() for part, one in noted.items()}
        if changed:
            others["counts"] = counts_in_words(noted, records_before(run.config()), done)
            logger.warning("going on with other data than before: AP before and after do not compare")
        run.change({name: getattr(chosen, name) for name in CHANGEABLE}, **others)
        logger.info("going on after epoch %d of %d", done, chosen.epochs)
    reporting = Reporting(run, checkpoint, validation, class_names, chosen, masks)
    progress = Progress(steps, images, bar=_verbose() == 1)
    if reporting.precision is not None:
        reporting.precision.progress = progress.measured
    with run.start() if process_index() == 0 and not going_on else contextlib.nullcontext():
        if done < chosen.epochs:
            _announce(model, chosen, steps, number, images)
            of_recipe = sorted(given.of_recipe(model))
            for name, reason in shortened.items():
                logger.info("%s is %s: %s", name, getattr(chosen, name), reason)
            counts = counts_in_words(noted)
            begin = _Begin(
                partial(run.create, source, class_names, chosen, model, counts, data, noted, of_recipe, shortened)
            )
            guard, stop = StopAtNonFiniteLoss(), StopAtInterrupt()
            with readable_errors(), stop:
                if not done:
                    _pretrain(model, records, chosen)
                batches = guard.watch(_epochs(records, chosen, done, number))
                if process_index() == 0 and not tell_crowded_images(records, model.config.num_predictions):
                    batches = watch_crowding(batches, model.config.num_predictions)
                model.fit(
                    batches,
                    epochs=chosen.epochs,
                    initial_epoch=done,
                    validation_data=_validation_batches(validation, chosen),
                    callbacks=[
                        *(stop, guard, *((progress,) if process_index() == 0 else ()), *reporting.before()),
                        *(() if going_on or process_index() != 0 else (begin,)),
                        *(checkpoint, reporting, *callbacks),
                    ],
                    verbose=_verbose(),
                )
    reporting.tell()


class _Begin(keras.callbacks.Callback):
    """A callback that writes the description of a run at the end of its first epoch: a shorter run leaves nothing."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__()
        self._write = write
        self._is_due = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the description once."""
        if self._is_due:
            self._write()
        self._is_due = False


def _smallest_canvas(preprocessing: Preprocessing, settings: Settings) -> tuple[int, int]:
    """Return height and width of the smallest images that a step is given, where all have one size, pixels."""
    sizes = MULTISCALE if settings.multiscale is True else settings.multiscale or (1.0,)
    multiple = preprocessing.multiple_of if preprocessing.multiple_of > 1 else MULTIPLE
    height, width = (scaled_side(side, min(sizes), multiple) for side in preprocessing.largest)
    return height, width


def _announce(model: Detector, settings: Settings, steps: int, images: int, validation_images: int) -> None:
    """Log what is going to be trained, and that nothing will be measured if there are no validation images."""
    if process_index() != 0:
        return
    logger.info(
        "training a %s of %.1f million weights on %d images of up to %d x %d pixels: %d epochs of %d steps",
        type(model).__name__,
        model.count_params() / 1e6,
        images,
        *model.preprocessing.largest,
        settings.epochs,
        steps,
    )
    if (advice := advice_on_memory(model, settings, model.preprocessing)) is not None:
        logger.log(logging.WARNING if advice.is_too_much else logging.INFO, "%s", advice.text)
    if not validation_images:
        logger.warning(
            "there is no validation set: AP is not measured, and the best model is the one of the lowest training "
            "loss; --val-split 0.2 keeps a fifth of the images for it, in Python td.data.split and validation="
        )


def _optimizer(model: Detector, settings: Settings, steps_per_epoch: int) -> AdamW:
    several = settings.gradient_accumulation_steps > 1
    averages: dict[str, Any] = {}
    if settings.ema_momentum:
        averages = {
            "use_ema": True,
            "ema_momentum": settings.ema_momentum,
            "ema_ramp_steps": settings.ema_ramp_steps,
            "ema_restart_at": int(settings.ema_restart_after) * steps_per_epoch or None,
        }
    return AdamW(
        learning_rate(settings, steps_per_epoch),
        learning_rate_multipliers=learning_rate_multipliers(model, settings),
        weight_decay=settings.weight_decay,
        weight_decay_exclude=settings.weight_decay_exclude,
        global_clipnorm=None if settings.global_clipnorm >= NO_LIMIT else settings.global_clipnorm,
        gradient_accumulation_steps=settings.gradient_accumulation_steps if several else None,
        **averages,
    )


def _check_workers(settings: Settings) -> None:
    workers = number_of_processes()
    if workers > 1 and keras.distribution.distribution() is None:
        raise ValueError(
            f"{workers} processes would each train a model of their own: first call "
            "keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))"
        )
    if settings.batch_size % workers:
        raise ValueError(f"batch_size={settings.batch_size} cannot be shared evenly by {workers} processes")


def _check_masks(model: Detector, **sets: tf.data.Dataset | None) -> None:
    for name, records in sets.items():
        if model.has_masks and records is not None and "masks" not in records.element_spec:
            raise ValueError(
                f"a {type(model).__name__} is trained with masks, and the {name} records have none: read them with "
                "td.data.load_coco(…, masks=True) or td.data.load_coco_panoptic, on the command line with --masks"
            )


def _batches(settings: Settings) -> dict[str, Any]:
    """Return the arguments of `prepare` for training and validation, for this worker's part of each batch."""
    names = ("pad_to", "max_boxes", "preprocessing")
    return {"batch_size": settings.batch_size // number_of_processes()} | {
        name: getattr(settings, name) for name in names
    }


def _validation_batches(validation: tf.data.Dataset | None, settings: Settings) -> tf.data.Dataset | None:
    """Return batches for the validation loss; None with several workers, whose last shares would differ."""
    return None if validation is None or number_of_processes() > 1 else prepare(validation, **_batches(settings))


def _epochs(records: tf.data.Dataset, settings: Settings, first_epoch: int, count: int) -> tf.data.Dataset:
    """Return a dataset of which each pass is one epoch of `fit`.

    An epoch is one pass over the records, or `steps_per_epoch` batches.
    """
    # With a set number of steps an epoch begins with a pass of its own, so that the epoch's number says which.
    passes = 1
    if settings.steps_per_epoch is not None:
        passes = math.ceil(settings.steps_per_epoch / max(1, count // settings.batch_size))
    batches = prepare(
        records,
        training=True,
        augmentation=settings.augmentation,
        multiscale=MULTISCALE if settings.multiscale is True else settings.multiscale or None,
        plain_from=(settings.epochs - int(settings.plain_epochs)) * passes if settings.plain_epochs else None,
        color_jitter=settings.color_jitter,
        seed=settings.seed,
        first_epoch=first_epoch * passes,
        shard=(number_of_processes(), process_index()),
        **_batches(settings),
    )
    if settings.steps_per_epoch is not None:
        return batches.repeat(passes).take(settings.steps_per_epoch)
    # One worker may have a batch more than another.
    return batches if number_of_processes() == 1 else batches.take(count // settings.batch_size)


def _pretrain(model: Detector, records: tf.data.Dataset, settings: Settings) -> None:
    """Train the backbone alone to tell where each class is."""
    epochs = settings.pretraining_epochs
    if not epochs:
        return
    logger.info("the backbone alone learns first, for %d epochs", epochs)
    batches = _epochs(records, settings, 0, number := count(records))
    steps = epochs * (settings.steps_per_epoch or max(1, number // settings.batch_size))
    schedule = keras.optimizers.schedules.CosineDecay(PRETRAINING_LEARNING_RATE, steps)
    backbone = BackbonePretraining(model)
    backbone.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
        jit_compile=settings.compilation(model.preprocessing),
    )
    backbone.fit(batches, epochs=epochs, verbose=_verbose())


def _verbose() -> int:
    """Return Keras' verbosity: a bar for people, a line per epoch for logs, nothing for workers but the first."""
    if process_index() != 0:
        return 0
    return 1 if sys.stdout.isatty() else 2
