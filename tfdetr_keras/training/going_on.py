"""Checks that a run is resumed with the same classes, settings and records."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfdetr_keras.data.class_names import tidy_names
from tfdetr_keras.training.durations import SCALED
from tfdetr_keras.training.fingerprint import Fingerprint
from tfdetr_keras.training.run_folder import RunFolder
from tfdetr_keras.training.settings import Settings

CHANGEABLE = ("epochs", "evaluate_every", "tensorboard")
_COUNT = re.compile(r"\d+")


def as_begun(run: RunFolder, settings: Settings, given: Settings) -> Settings:
    """Return the settings with what the run's length scaled as it was when the run began, which may now be longer.

    Args:
        run: to resume.
        settings: of the run, see `tfdetr_keras.training.durations.scaled`.
        given: as the user set them; what is set there stays.
    """
    before = run.config()["settings"]
    kept = {name: before[name] for name in SCALED if before.get(name) is not None and getattr(given, name) is None}
    return dataclasses.replace(settings, **kept)


def refuse_other_settings(run: RunFolder, class_names: Sequence[str], settings: Settings) -> None:
    """Raise if the run was started with other classes or settings.

    Args:
        run: to resume.
        class_names: name of each label.
        settings: with the model's own values filled in, see `Settings.resolved`.

    Raises:
        ValueError: it was; the message names the differences.
    """
    config = run.config()
    if list(class_names) != tidy_names(config["class_names"], run.path):
        raise ValueError(f"{run.path} was trained on other classes: {', '.join(config['class_names'])}")
    before = Settings.of(config["settings"])
    if callable(settings.augmentation):  # which no file can hold
        before = dataclasses.replace(before, augmentation=settings.augmentation)
    before = before.resolved(None)  # those of earlier versions have sizes in place of a preprocessing
    changed = [
        f"{name} was {getattr(before, name)}, not {value}"
        for name, value in vars(settings).items()
        if value != getattr(before, name) and name not in CHANGEABLE
    ]
    if changed:
        raise ValueError(
            f"{run.path} cannot be resumed with other settings ({'; '.join(changed)}): only {', '.join(CHANGEABLE)} "
            "may change; to train with other settings, begin a new run from its last.keras"
        )


def refuse_other_data(run: RunFolder, records: Mapping[str, Fingerprint | None], accepted: bool) -> bool:
    """Raise if the run was started with other records.

    Args:
        run: to resume.
        records: the present training and validation records, by these names; None if there are none.
        accepted: whether the change of records is intended.

    Returns:
        Whether the records changed.

    Raises:
        ValueError: there are validation records now and there were none, or the reverse; or, unless accepted,
            records of another number, other names or other annotations. Properties that an earlier version did not
            note, or that a reader does not know without decoding images, are not compared.
    """
    before = records_before(run.config())
    last = run.path / "last.keras"
    if (before["validation"] is None) != (records["validation"] is None):
        was, now = ("without", "with") if before["validation"] is None else ("with", "without")
        raise ValueError(
            f"{run.path} was trained {was} validation records and cannot be resumed {now} them, since they decide "
            f"which model is best: give the same as before, or begin a new run from {last}"
        )
    changed = [
        f"{part}: {difference}"
        for part, found in records.items()
        if found is not None
        for difference in found.differences(before[part] or found)
    ]
    if changed and not accepted:
        raise ValueError(
            f"{run.path} was trained on other data ({'; '.join(changed)}): bring that back, set accept_changed_data to "
            f"continue with the present data, or begin a new run from {last}"
        )
    return bool(changed)


def records_before(config: Mapping[str, Any]) -> dict[str, Fingerprint | None]:
    """Return what a run noted of its records; earlier versions noted only their number.

    Args:
        config: the content of the run's `config.json`.
    """
    if "records" in config:
        noted = {part: one and Fingerprint.of_json(one) for part, one in config["records"].items()}
    else:
        found = {part: _COUNT.match(text) for part, text in config["counts"].items()}
        noted = {part: Fingerprint(int(number[0])) for part, number in found.items() if number}
    return {"training": None, "validation": None} | noted


def counts_in_words(
    records: Mapping[str, Fingerprint | None], before: Mapping[str, Fingerprint | None] | None = None, done: int = 0
) -> dict[str, str]:
    """Return in words how many images each part has, for the report.

    Args:
        records: by part.
        before: the records of earlier epochs, if they differed.
        done: the number of these epochs.
    """
    told = {}
    for part, one in records.items():
        if one is not None:
            earlier = before and before.get(part)
            changed = f", {earlier.images} up to epoch {done}" if earlier and one.differences(earlier) else ""
            told[part] = f"{one.images} images{changed}"
    return told
