"""A training run's folder: its settings, its progress, its results, and everything needed to resume it.

| file | |
|---|---|
| `config.json` | source, settings, data and architecture |
| `class_names.txt` | one a line, in the order of the labels |
| `metrics.csv`, `curves.png` | losses, learning rate and AP of each epoch |
| `best.keras`, `best.json` | the model with the best AP, of masks where it has them, and its metrics by class |
| `last.keras`, `state.safetensors` | the last epoch's model, and the state that `resume` starts from |
| `predictions.png` | the best model on a few validation images |
| `segments.png` | the same of its masks, where it has them |
| `thresholds.json` | the score that each class's detections have to exceed, if they were kept with the run |
| `report.md` | all of it to read |
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import math
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from PIL import Image

from tfdetr_keras import notebook
from tfdetr_keras.backend.atomic import clear_scratch, made_folder, whole_file, write_text
from tfdetr_keras.backend.locks import HeldError, Lock
from tfdetr_keras.backend.serialized import criterion_of
from tfdetr_keras.backend.whole_files import read_json
from tfdetr_keras.data.class_names import tidy_name
from tfdetr_keras.evaluation.coco import MASK, class_table
from tfdetr_keras.models import from_pretrained
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.registry import config_of, describe, model_class
from tfdetr_keras.preprocessing import Preprocessing
from tfdetr_keras.training.checkpoint import BEST, FIRST_EPOCH, LAST, STATE
from tfdetr_keras.training.fingerprint import Fingerprint
from tfdetr_keras.training.markdown import escaped
from tfdetr_keras.training.run_config import OBJECT, read_config, said_of
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.visualize import plot_curves

CONFIG, CLASS_NAMES, METRICS, CURVES = "config.json", "class_names.txt", "metrics.csv", "curves.png"
BEST_METRICS, PREDICTIONS, SEGMENTS = "best.json", "predictions.png", "segments.png"
THRESHOLDS = "thresholds.json"
REPORT, TENSORBOARD = "report.md", "tensorboard"
LOCK = ".lock"  # while a process trains
FILES = (
    CLASS_NAMES,
    METRICS,
    CURVES,
    BEST_METRICS,
    PREDICTIONS,
    SEGMENTS,
    THRESHOLDS,
    REPORT,
    BEST,
    LAST,
    STATE,
    CONFIG,
    FIRST_EPOCH,
)
RESULTS = (BEST, LAST, METRICS)  # of finished epochs; while the first one is being written, FIRST_EPOCH is there, too
logger = logging.getLogger(__name__)
FORMAT = 2  # of config.json: of 1, what is null of clipping and averaging is none, not the recipe's
CURVES_WIDTH = 800  # pixels, in notebooks
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
# The panels of the curves, of all that is logged.
PANELS = (
    *("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf_0", "loss_mask", "loss_dice"),
    *("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75", "cardinality_error", "learning_rate"),
)


class RunFolder:
    """Reader and writer of a run's files.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it; remove what killed ones left half-written.

        The lock of a killed process is released. After an error, a new and empty folder is removed.

        Raises:
            ValueError: another process trains in it.
        """
        with made_folder(self.path):
            try:
                lock = Lock(self.path / LOCK)
            except HeldError as error:
                raise ValueError(
                    f"{self.path} is in use, {error or 'another process'} trains in it: wait until it has ended, or "
                    "give another folder"
                ) from None
            try:
                if not lock.is_real:
                    logger.warning("no locks on this disk: see to it that no other process trains in %s", self.path)
                clear_scratch(self.path)
                yield
            finally:
                lock.release()

    @contextlib.contextmanager
    def start(self) -> Iterator[None]:
        """Begin a new run; if it fails before the end of its first epoch, remove it.

        Remains of a start that was killed are removed first.
        """
        if self.is_start_alone():
            self.remove()
        before = {name for name in (*FILES, TENSORBOARD) if (self.path / name).exists()}
        try:
            yield
        except BaseException:
            if not self.state_path().exists():
                self._remove_all_but(before)
            raise

    def has_epochs(self) -> bool:
        """Return whether an epoch was finished; before that, there is no run."""
        if self.state_path().exists():
            return True
        return not (self.path / FIRST_EPOCH).exists() and any((self.path / name).exists() for name in RESULTS)

    def refuse_lost_state(self) -> None:
        """Raise a `ValueError` if the folder holds results of a run, but no state to resume it from."""
        if self.has_epochs() and not self.state_path().exists():
            left = [name for name in RESULTS if (self.path / name).exists()]
            models = [name for name in left if name != METRICS]
            way = "give another folder"
            if models:
                way = f"begin a new run from its model (tfdetr train --from {self.path / models[0]}) in another folder"
            raise ValueError(
                f"{self.path} holds {' and '.join(left)} of a run, but not its {STATE}, without which it cannot be "
                f"resumed: bring the file back, or {way}"
            )

    def is_start_alone(self) -> bool:
        """Return whether the folder holds a run's first files but no finished epoch: a start that was killed."""
        if self.has_epochs() or not (self.path / CONFIG).is_file():
            return False
        try:
            return {"format", "settings", "class_names"} <= set(self.config())
        except (TypeError, ValueError):
            return False  # somebody else's

    def __repr__(self) -> str:
        """Return in one line where the run is and how far it came; never raises."""
        return f"<RunFolder {str(self.path)!r}: {self._state()}>"

    def _state(self) -> str:
        try:
            epochs = self.config()["settings"]["epochs"]
            history, metrics = self._history(), self.metrics
        except (OSError, ValueError, KeyError, TypeError):
            return "no training run, or none that can be read"
        best = f", best AP {metrics['AP']:.3f} in epoch {metrics['epoch']}" if metrics else ""
        return f"{len(history)} of {epochs} epochs{best}"

    def _history(self) -> list[dict[str, str]]:
        """Return the rows of `metrics.csv`, as text."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _repr_html_(self) -> str:
        """Return the best model's metrics, the last epoch's log and the curves, as far as they exist, for notebooks."""
        parts = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of a run that is damaged, what is left
            metrics, history = self.metrics, self._history()
            if metrics:
                kinds = ("", MASK) if f"{MASK}AP" in metrics else ("",)
                names = [kind + name for kind in kinds for name in SHOWN]
                parts.append(notebook.table(("metric", "value"), [(name, _shown(metrics[name])) for name in names]))
                parts.append(notebook.table(("class", "AP", "AP50"), _class_rows(metrics)))
            elif history:
                parts.append(notebook.table(("last epoch", "value"), [pair for pair in history[-1].items() if pair[1]]))
            if (self.path / CURVES).is_file():
                with Image.open(self.path / CURVES, formats=("PNG",)) as curves:
                    parts.append(notebook.picture(curves, CURVES_WIDTH))
        return notebook.page(f"Run {self.path}: {self._state()}", *parts)

    def create(
        self,
        source: Any,
        class_names: Sequence[str],
        settings: Settings,
        model: Detector,
        counts: Mapping[str, str],
        data: Mapping[str, Any] | None,
        records: Mapping[str, Fingerprint | None],
        of_recipe: Sequence[str] = (),
        shortened: Mapping[str, str] | None = None,
    ) -> None:
        """Write the description of the run, at the end of its first epoch.

        Args:
            source: of the starting model.
            class_names: name of each label.
            settings: of the run.
            model: the model at its start.
            counts: size of the data, by name, e.g. `{"training": "292 images"}`.
            data: how the records can be read again, for the command line; None if only the program knows.
            records: fingerprints of the training and the validation records, by name; None if there are none.
            of_recipe: names of the settings that come from the model's recipe.
            shortened: which of these were scaled to the run, and what the recipe has.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        described = dataclasses.asdict(settings)
        if callable(settings.augmentation):  # which no file can hold
            described["augmentation"] = None
        content = {
            "format": FORMAT,
            "source": str(source),
            "settings": described,
            "of_recipe": list(of_recipe),
            "shortened": dict(shortened or {}),
            "data": data,
            "counts": dict(counts),
            "records": {part: one and one.as_json() for part, one in records.items()},
            "folder": str(self.path.absolute()),
            "class_names": list(class_names),
            "model": describe(model.config),
            "criterion": keras.saving.serialize_keras_object(model.criterion),
        }
        write_text(self.path / CLASS_NAMES, "".join(f"{tidy_name(name)}\n" for name in class_names))
        write_text(self.path / CONFIG, json.dumps(content, indent=2) + "\n")

    def remove(self) -> None:
        """Delete the files of a run, if the folder holds one; other files in it stay."""
        if (self.path / CONFIG).is_file():
            self._remove_all_but(())

    def _remove_all_but(self, kept: Container[str]) -> None:
        for name in FILES:
            if name not in kept:
                (self.path / name).unlink(missing_ok=True)
        if TENSORBOARD not in kept:
            shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)

    def refuse_other_run(self) -> None:
        """Raise a `ValueError` if the folder holds a run already, or the configuration of something else.

        A start that was killed before the end of its first epoch does not count as a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: name a folder")
        if self.has_epochs():
            raise ValueError(
                f"{self.path} holds a run already: resume it (tfdetr resume {self.path}), or give another folder"
            )
        if (self.path / CONFIG).exists() and not self.is_start_alone():
            raise ValueError(f"{self.path} holds a {CONFIG} that is not of a run: give another folder")

    def change(self, settings: Mapping[str, Any], **others: Any) -> None:
        """Write other settings, e.g. more epochs, and other entries into the configuration."""
        content = self.config()
        content["settings"] |= settings
        content |= others
        write_text(self.path / CONFIG, json.dumps(content, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            ValueError: the folder holds no run.
        """
        path = self.path / CONFIG
        if not path.is_file():
            raise ValueError(
                f"{self.path} is not the folder of a training run: it has no {CONFIG}, which is written at the end "
                "of the first epoch"
            )
        return read_config(path)

    def new_model(self) -> Detector:
        """Return the run's model with random weights, for `Checkpoint.restore`."""
        preprocessing = self.preprocessing
        config = self.config()
        with said_of(self.path / CONFIG):
            criterion = criterion_of(config["criterion"], CONFIG)
            architecture = dataclasses.replace(config_of(config["model"]), preprocessing=preprocessing)
            return model_class(architecture)(architecture, criterion, dtype=config["settings"]["precision"])

    def load_model(self, which: str = "best") -> Detector:
        """Return the best model, or the last.

        Raises:
            ValueError: neither "best" nor "last", or the run has none.
        """
        return from_pretrained(self.model_path(which))

    def model_path(self, which: str = "best") -> Path:
        """Return the file of the best model, or the last; see `load_model`."""
        if which not in ("best", "last"):
            raise ValueError(f'a run keeps its "best" and its "last" model, not {which!r}')
        self.config()
        path = self.path / {"best": BEST, "last": LAST}[which]
        if not path.is_file():
            why = "it was removed" if self.has_epochs() else "no epoch was finished yet"
            raise ValueError(f"{self.path} has no {path.name}: {why}")
        return path

    @property
    def preprocessing(self) -> Preprocessing:
        """The preparation of images for the model; with a canvas if all images had one."""
        config = self.config()
        with said_of(self.path / CONFIG):
            return _settings_of_input(config["settings"]).preprocessing_of(None)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The arguments of `tfdetr_keras.evaluation.evaluate_detections` that measure the run's validation images."""
        config = self.config()
        with said_of(self.path / CONFIG):
            return _settings_of_input(config["settings"]).evaluation(self.preprocessing)

    @property
    def metrics(self) -> dict[str, Any]:
        """COCO's metrics of the best model on the validation set, with `epoch` (from 1); see `evaluate_detections`.

        Empty if there was no validation set.
        """
        path = self.path / BEST_METRICS
        return read_json(path, OBJECT) if path.is_file() else {}

    @property
    def thresholds(self) -> dict[str, float]:
        """The score that detections of each class have to exceed, by its name, as `keep_thresholds` wrote them.

        Empty if none were kept.

        Raises:
            ValueError: the file was changed, and has something else than numbers from 0 up to 1.
        """
        path = self.path / THRESHOLDS
        kept = read_json(path, OBJECT) if path.is_file() else {}
        for name, value in kept.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{path}: the threshold of {name!r} must be at least 0 and below 1, not {value!r}")
        return kept

    def keep_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Keep thresholds with the run, in place of earlier ones: prediction starts from them.

        Args:
            thresholds: by the name of each class, e.g. from `thresholds_of` of a diagnosis.

        Raises:
            ValueError: the folder holds no run.
        """
        self.config()
        write_text(self.path / THRESHOLDS, json.dumps(dict(thresholds), indent=2) + "\n")

    def write_best(self, metrics: Mapping[str, Any], epoch: int) -> None:
        """Write the metrics of a new best model; thresholds of an earlier one are its no more."""
        (self.path / THRESHOLDS).unlink(missing_ok=True)
        write_text(self.path / BEST_METRICS, json.dumps({"epoch": epoch + 1, **metrics}, indent=2) + "\n")

    def write_log(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write `metrics.csv`, one row per epoch; a metric that was not measured is left empty."""
        names = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, ["epoch", *names], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows({"epoch": epoch, **row} for epoch, row in enumerate(history, start=1))
        write_text(self.path / METRICS, text.getvalue())

    def write_curves(self, history: Sequence[Mapping[str, float]]) -> None:
        """Draw `curves.png`."""
        logged = {name for row in history for name in row}
        names = [name for panel in PANELS for name in (panel, f"val_{panel}") if name in logged]
        with whole_file(self.path / CURVES) as partial:
            plot_curves({name: [row.get(name, math.nan) for row in history] for name in names}, partial)

    def write_report(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write `report.md` from the logs of each epoch."""
        config, metrics = self.config(), self.metrics
        epochs = config["settings"]["epochs"]
        lines = [
            f"# {escaped(self.path.name)}",
            "",
            f"Started from `{config['source']}`, trained for {len(history)} of {epochs} epochs.",
            "",
            *(f"- {name}: {text}" for name, text in config["counts"].items()),
            f"- classes: {escaped(', '.join(config['class_names']))}",
            "",
        ]
        if metrics:
            lines += [
                f"## Best model: epoch {metrics['epoch']}",
                "",
                f"COCO metrics on the validation images (`{BEST}`; −1: no such objects).",
                "",
                *metric_tables(metrics),
                "",
            ]
        if history:
            last = {name: f"{value:.4g}" for name, value in history[-1].items()}
            lines += [f"## Last epoch: {len(history)}", "", *table(("figure", "value"), list(last.items())), ""]
        pictures = {CURVES: "Curves", PREDICTIONS: "Predictions (solid) and true boxes (dashed)", SEGMENTS: "Masks"}
        for name, title in pictures.items():
            if (self.path / name).is_file():
                lines += [f"## {title}", "", f"![{title}]({name})", ""]
        settings = settings_in_words(config)
        folder = self.path.as_posix()
        lines += [
            "## Going on",
            "",
            "```bash",
            f"tfdetr predict IMAGES --model {folder} --out predictions",
            f"tfdetr resume {folder}  # after a stop; with --epochs N for more epochs",
            "```",
            "",
            "```python",
            f'model = td.from_pretrained("{folder}/{BEST}")',
            "```",
            "",
            "## Settings",
            "",
            *table(("setting", "value"), settings),
            "",
            *_told_recipe(config),
        ]
        write_text(self.path / REPORT, "\n".join(lines) + "\n")

    def state_path(self) -> Path:
        """Return the file that `resume` starts from."""
        return self.path / STATE


def _class_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, _shown(ap), _shown(at_half)) for name, ap, at_half in class_table(metrics)]


def _shown(value: float) -> str:
    """Return a COCO metric as text; it is −1 where there are no objects of the kind."""
    return "–" if value < 0 else f"{value:.3f}"


def _told_recipe(config: Mapping[str, Any]) -> list[str]:
    """Return lines on what the mark in the table of settings means, if there is one."""
    if not config.get("of_recipe"):
        return []
    shortened = [f"- {name}: {reason}" for name, reason in config.get("shortened", {}).items()]
    return ["\\* from the model's own recipe", "", *shortened, *([""] if shortened else [])]


def _settings_of_input(settings: Mapping[str, Any]) -> Settings:
    """Return the settings of a run by which images become batches; earlier versions had only the first three."""
    names = ("size", "pad_to", "batch_size", "size_rule", "preprocessing")
    return Settings.of({name: settings[name] for name in names if name in settings or name == "batch_size"})


def settings_in_words(config: Mapping[str, Any]) -> list[list[str]]:
    """Return names and values of a run's settings, for readable tables; those of the model's recipe get a mark."""
    settings, of_recipe = config["settings"], config.get("of_recipe", ())
    of_image = settings.get("preprocessing")
    words = {} if of_image is None else {"preprocessing": str(Preprocessing.of(of_image))}
    told = {name: words.get(name, str(value)) + " *" * (name in of_recipe) for name, value in settings.items()}
    if of_image is not None:  # which says it all
        for name in ("size", "size_rule", *(() if settings.get("pad_to") else ("pad_to",))):
            told.pop(name, None)
    return [[name, value] for name, value in told.items()]


def metric_tables(metrics: Mapping[str, Any]) -> list[str]:
    """Return COCO's metrics and those of each class, of masks if there are any, as the lines of Markdown tables."""
    kinds = {"": "", MASK: "mask "} if f"{MASK}AP" in metrics else {"": ""}
    lines: list[str] = []
    for kind, title in kinds.items():
        values = [f"{metrics[f'{kind}{name}']:.3f}" for name in SHOWN]
        lines += [*table([f"{title}{name}" for name in SHOWN], [values]), ""]
    names = [name for name, *_ in class_table(metrics)]
    columns = [[row[1:] for row in class_table(metrics, masks=kind == MASK)] for kind in kinds]
    rows = [
        [escaped(name), *(f"{value:.3f}" for pair in of_class for value in pair)]
        for name, *of_class in zip(names, *columns, strict=True)
    ]
    header = [f"{title}{name}" for title in kinds.values() for name in ("AP", "AP50")]
    return [*lines, *table(["class", *header], rows)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
