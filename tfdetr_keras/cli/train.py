"""`tfdetr train`: trains a detector on a data set, in a folder that keeps everything of the run."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfdetr_keras.backend.full_disk import FullDiskError
from tfdetr_keras.cli.data_options import (
    add_batch_options,
    add_source_options,
    batch_arguments,
    source_arguments,
)
from tfdetr_keras.cli.dry_run import dry_run
from tfdetr_keras.cli.model_options import check_weights
from tfdetr_keras.cli.moved_data import with_whole_places
from tfdetr_keras.cli.sources import Loaded, check_source, load_source
from tfdetr_keras.models.packaged import packaged_names
from tfdetr_keras.models.recipe import RECIPE
from tfdetr_keras.training.settings import OF_RECIPE, Settings

DEFAULTS = Settings()
BY_NAME = "name"  # how `--val-split` draws: by the images' names
# The options of the validation images, by the argument that differs from the training images'.
VALIDATION = {
    "annotations": "--val-annotations",
    "images": "--val-images",
    "segments": "--val-segments",
    "split": "--val-name",
    "image_set": "--val-image-set",
    "drawn_seed": "--val-drawn-seed",
    "count": "--val-count",
}

EXAMPLES = """examples:
  tfdetr train --data shapes --from detr-tiny --epochs 3 --val-split 0.2 --out run
  tfdetr train --data coco --images photos --annotations train.json --val-images photos --val-annotations val.json \\
      --from facebook/detr-resnet-50 --epochs 50 --batch-size 4 --out run
  tfdetr train --data voc --images JPEGImages --annotations Annotations --val-split 0.2 --from detr-tiny \\
      --size 240 320 --pad-to 320 320 --max-boxes 60 --epochs 100 --out run
  tfdetr train --data coco --images photos --annotations train.json --val-split 0.2 --from run --masks \\
      --epochs 25 --out masks

A run that was stopped goes on with: tfdetr resume run
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "train",
        help="train a detector: AP after every epoch, checkpoints, curves, pictures, a report",
        description="Trains a DETR on a data set. After each epoch it measures COCO AP on the validation images, and "
        "keeps the best and the last model, figures, curves, pictures and a report in the folder of the run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, a new one")
    command.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help=f"what to start from: {packaged_names()} (come with the package, trained on drawn shapes), a hub id "
        "like facebook/detr-resnet-50, a folder in Hugging Face's format, a .safetensors, .pth or .keras file, another "
        "run's folder, or an architecture for random weights like detr-resnet-18",
    )
    add_source_options(command)
    validation = command.add_argument_group("the validation images, on which AP is measured")
    one = validation.add_mutually_exclusive_group()
    one.add_argument(
        "--val-split",
        type=float,
        metavar="SHARE",
        help="about this share of the images, by lots of their names, e.g. 0.2; not trained on",
    )
    one.add_argument("--val-annotations", metavar="FILE_OR_DIR", help="as --annotations")
    one.add_argument("--val-name", metavar="NAME", help="yolo, tfds: another part of the same set, as --split")
    one.add_argument("--val-image-set", metavar="FILE", help="voc: other images of the same set, as --image-set")
    one.add_argument("--val-drawn-seed", type=int, metavar="N", help="shapes: as many others, as --drawn-seed")
    validation.add_argument("--val-images", metavar="DIR", help="as --images (default: the same)")
    validation.add_argument("--val-segments", metavar="DIR", help="coco-panoptic: as --segments (default: the same)")
    validation.add_argument("--val-count", type=int, metavar="N", help="shapes: as --count (default: as many)")
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="take one step, measure a few images, export the model, print what that took, and keep nothing",
    )
    add_batch_options(command, DEFAULTS.batch_size, "as in SOURCE")
    _add_model_options(command)
    _add_recipe_options(command)
    command.set_defaults(run=run)


def _add_model_options(command: argparse.ArgumentParser) -> None:
    model = command.add_argument_group("the model")
    model.add_argument("--random-weights", action="store_true", help="take only the architecture of SOURCE")
    model.add_argument(
        "--num-queries", type=int, metavar="N", help="object queries: most objects that an image can yield, with slack"
    )
    model.add_argument(
        "--num-denoising",
        type=int,
        metavar="N",
        help="objects that all groups of denoising queries together hold; 0 trains without (default: as in SOURCE)",
    )
    model.add_argument(
        "--keep-head",
        action=argparse.BooleanOptionalAction,
        help="keep the class head of SOURCE by position, whatever its classes are called, or make all of it random "
        "(default: the rows of classes of the same name are kept)",
    )
    model.add_argument(
        "--masks",
        action="store_true",
        help="coco, coco-panoptic, shapes: train with masks. A DETR is given a mask head, which is all that is "
        "trained unless --freeze says otherwise; an RF-DETR is given one, and all of it is trained; a SOURCE that has "
        "one is trained as it is",
    )
    model.add_argument(
        "--freeze",
        metavar="PARTS",
        help='parts that are not trained, e.g. backbone or stem+stage1; "" trains all (default: as in SOURCE: stem '
        "and first stage of published weights, nothing of random ones)",
    )
    model.add_argument(
        "--batch-norm",
        nargs="+",
        type=_word_or_pair,
        metavar="WORD",
        help="frozen or trainable: all batch normalisation; or that of some parts of the backbone, as in stem=frozen "
        "stage1=frozen (default: as in SOURCE; trainable for random weights)",
    )
    model.add_argument("--dropout", type=float, metavar="RATE", help="(default: as in SOURCE)")


def _add_recipe_options(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("the recipe")

    def add(name: str, help: str, **options: Any) -> None:
        field = name.strip("-").replace("-", "_")
        default = getattr(DEFAULTS, field)
        shown = f"as SOURCE's authors, DETR: {RECIPE[field]}" if field in OF_RECIPE else default
        recipe.add_argument(name, default=default, help=f"{help} (default: {shown})", **options)

    add("--epochs", "passes over the training images", type=int, metavar="N")
    recipe.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="batches an epoch (default: one pass over the images)"
    )
    add(
        "--augmentation",
        "paper: mirror, crop and several scales; strong: colours, zoom out, crop around objects, mirror; flip: mirror",
        choices=("paper", "strong", "flip", "none"),
    )
    recipe.add_argument(
        "--multiscale",
        action=argparse.BooleanOptionalAction,
        help="resize each batch to one of several sizes, 0.75 to 1.25 of the images' (default: as SOURCE's authors, "
        "DETR: not)",
    )
    add("--plain-epochs", 'epochs at the end, or "300 steps", that only mirror images', type=_duration, metavar="N")
    add("--learning-rate", "the highest", type=float, metavar="RATE")
    add("--backbone-multiplier", "factor on it in the backbone", type=float, metavar="FACTOR")
    add("--layer-decay", "factor on it from a part of the backbone to the one before", type=float, metavar="FACTOR")
    recipe.add_argument(
        "--learning-rate-multipliers",
        nargs="+",
        type=_factor_of_part,
        metavar="PART=FACTOR",
        help="factors on it in other parts, e.g. class_head=2 (default: as SOURCE's authors, DETR: none)",
    )
    add("--schedule", "cosine to 0, a tenth for the last quarter, or constant", choices=("cosine", "step", "constant"))
    add("--warmup-steps", 'batches, or "2 epochs", in which the rate rises from 0', type=_duration, metavar="N")
    add("--weight-decay", "decoupled", type=float, metavar="RATE")
    recipe.add_argument(
        "--weight-decay-exclude",
        nargs="*",
        metavar="NAME",
        help="what does not decay: norms, biases, embeddings, or parts of the model (default: as SOURCE's authors, "
        "DETR: nothing)",
    )
    add("--global-clipnorm", "limit of the norm of all gradients together, 1e9 for none", type=float, metavar="NORM")
    add("--gradient-accumulation-steps", "batches for each step of the optimizer", type=int, metavar="N")
    add("--ema-momentum", "use an average of the weights, of e.g. 0.999; 0 for none", type=float, metavar="M")
    add(
        "--ema-ramp-steps",
        'steps, or "2 epochs", in which the average slows down to that',
        type=_duration,
        metavar="N",
    )
    add("--ema-restart-after", "epochs after which the average starts anew; 0 for never", type=_duration, metavar="N")
    add("--pretraining-epochs", "the backbone alone learns first, for random weights", type=int, metavar="N")
    add("--evaluate-every", "epochs from one measurement of AP to the next", type=int, metavar="N")
    add("--precision", "of the computation", choices=("float32", "mixed_bfloat16"))
    recipe.add_argument(
        "--jit-compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile steps by XLA (default: on accelerators with --pad-to and --max-boxes: one shape)",
    )
    recipe.add_argument(
        "--recompute",
        action="store_true",
        help="compute layers again in the backward pass: less memory, a quarter more time",
    )
    recipe.add_argument("--cache", action="store_true", help="keep the decoded images in memory after the first epoch")
    recipe.add_argument("--tensorboard", action="store_true", help="also write events for TensorBoard")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    description = {
        "training": source_arguments(options),
        "validation": _validation_arguments(options),
        "val_split": options.val_split,
        "split_seed": options.seed,
        "split_by": BY_NAME,
        "cache": options.cache,
    }
    recipe = {name: getattr(options, name) for name in vars(DEFAULTS) if hasattr(options, name)}
    recipe |= {"batch_norm": _batch_norm(options.batch_norm)}
    if options.learning_rate_multipliers is not None:
        recipe["learning_rate_multipliers"] = dict(options.learning_rate_multipliers)
    Settings.of(recipe | batch_arguments(options))
    check_source(**description["training"])
    if description["validation"] is not None:
        with named_as_validation():
            check_source(**description["validation"])
    if options.val_split is not None:
        _check_share(options.val_split)
    check_weights(options.source)
    from tfdetr_keras.training import fit_detector

    (records, names), validation = read_run_data(description)
    if options.dry_run:
        dry_run(records, names, validation, options.source, recipe | batch_arguments(options))
        return 0
    with told_how_to_go_on(options.out):
        run_folder = fit_detector(
            records,
            names,
            options.out,
            validation,
            options.source,
            data=with_whole_places(description),
            **recipe | batch_arguments(options),
        )
    say_result(run_folder)
    return 0


def _duration(text: str) -> int | str:
    """Return a number as one; texts such as "2 epochs" are checked by the settings."""
    return int(text) if text.strip().isdecimal() else text


def _factor_of_part(text: str) -> tuple[str, float]:
    part, _, factor = text.partition("=")
    try:
        return part, float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=FACTOR, e.g. class_head=2") from None


def _word_or_pair(text: str) -> tuple[str, str]:
    """Return a part, or "" for all, and the word behind it."""
    part, found, word = text.rpartition("=")
    if word not in ("frozen", "trainable") or (found and not part):
        raise argparse.ArgumentTypeError(f"{text!r} is not frozen, trainable or PART=WORD, e.g. stem=frozen")
    return part, word


def _batch_norm(words: Sequence[tuple[str, str]] | None) -> Any:
    """Return the setting `batch_norm` of the option's words.

    Raises:
        ValueError: a word for all parts beside others.
    """
    if words is None:
        return None
    if any(not part for part, _ in words) and len(words) > 1:
        raise ValueError("--batch-norm takes one word for the whole backbone, or PART=WORD for some of its parts")
    return words[0][1] if not words[0][0] else dict(words)


@contextlib.contextmanager
def told_how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to a `KeyboardInterrupt` (Ctrl-C) and to the error of a full disk how to resume the run.

    Raises:
        KeyboardInterrupt: the same, with a message.
        FullDiskError: likewise.
    """
    from tfdetr_keras.training import RunFolder

    state = RunFolder(folder).state_path()
    try:
        yield
    except KeyboardInterrupt:
        if state.exists():
            raise KeyboardInterrupt(f"go on with: tfdetr resume {folder}") from None
        raise KeyboardInterrupt("no epoch was finished, and nothing is left of it") from None
    except FullDiskError as error:
        if state.exists():
            raise FullDiskError(f"{error}; go on with: tfdetr resume {folder}") from error
        raise


def _validation_arguments(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the validation set's arguments: the training set's, with those that differ; None if there is no set."""
    changes = {name: getattr(options, option[2:].replace("-", "_")) for name, option in VALIDATION.items()}
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        return None
    if options.val_split is not None:
        others = ", ".join(VALIDATION[name] for name in given)
        raise ValueError(f"--val-split takes its images from the training set: leave out {others}")
    if set(given) <= {"images", "segments", "count"} and options.data != "voc":
        raise ValueError("the validation images have no annotations: give --val-annotations or --val-name")
    return source_arguments(options) | given


def read_run_data(description: dict[str, Any]) -> tuple[Loaded, Any]:
    """Read the data that a run's folder describes.

    Returns:
        The training records with the class names, and the validation records or None.

    Raises:
        ValueError: as `load_source`, or the two sets have different classes.
    """
    from tfdetr_keras import data
    from tfdetr_keras.data.split import split_by_count

    records, names = load_source(**description["training"])
    validation = None
    if description["val_split"] is not None:
        _check_share(description["val_split"])
        # Runs of earlier versions do not say how: they keep the split that they were trained with.
        split = data.split if description.get("split_by") == BY_NAME else split_by_count
        records, validation = split(records, description["val_split"], description["split_seed"])
    elif description["validation"] is not None:
        with named_as_validation():
            validation, validation_names = load_source(**description["validation"])
        if validation_names != names:
            raise ValueError(
                f"the validation set has other classes than the training set: {', '.join(validation_names)} and "
                f"{', '.join(names)}; name the labels with --class-names, or make the files agree"
            )
    if description["cache"]:
        records, validation = records.cache(), validation and validation.cache()
    return (records, names), validation


def _check_share(share: float) -> None:
    """Raise if a value is not a share between 0 and 1, e.g. 20 for 20 %."""
    if not 0 < share < 1:
        meant = f", so write {share / 100:g}" if 1 <= share < 100 else ""
        raise ValueError(f"--val-split must be between 0 and 1, not {share:g}: 20 % is 0.2{meant}")


@contextlib.contextmanager
def named_as_validation() -> Iterator[None]:
    """Replace the options of the training images in an error by those of the validation images.

    Raises:
        ValueError: the same, with other names.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, option in VALIDATION.items():
            message = re.sub(rf"--{name.replace('_', '-')}(?![\w-])|(?<![\w-]){name}(?= must )", option, message)
        raise ValueError(message) from error


def say_result(run_folder: Any) -> None:
    """Print where the run is and how good its best model is."""
    from tfdetr_keras.training.average_precision import summary

    if metrics := run_folder.metrics:
        print(f"best model: epoch {metrics['epoch']}, {summary(metrics)}")
    print(f"the run is in {run_folder.path}: read {run_folder.path / 'report.md'}")
