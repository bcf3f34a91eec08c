"""A run as a repository of the Hugging Face hub: weights that transformers and this package read, and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import port_weights
from port_weights.exports import FILES as WEIGHT_FILES
from port_weights.hub import HUB_ID
from tfdetr_keras.backend.atomic import check_new_folder, whole_folder
from tfdetr_keras.export.model_card import model_card
from tfdetr_keras.training.run_folder import CURVES, METRICS, PREDICTIONS, THRESHOLDS, RunFolder

CARD = "README.md"
COPIED = (CURVES, METRICS, PREDICTIONS, THRESHOLDS)  # of a run
NAMES = (*WEIGHT_FILES, CARD, *COPIED)  # of what such a folder holds


def hub(
    run: RunFolder | str | Path,
    path: str | Path,
    repository: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the folder of a run to upload: `hf upload OWNER/NAME PATH` then puts it on the hub.

    It holds the best model as transformers and `DETR.from_pretrained` read it, its preprocessing, the run's curves and
    pictures, and the model card, `README.md`. Nothing is sent anywhere.

    Args:
        run: a finished run, or its folder.
        path: the folder to write, which appears complete or not at all.
        repository: owner/name on the hub, for the card's examples; by default `OWNER` and the folder's name.
        dataset: name of the data; an id of the form owner/name becomes a link.
        license: of the model, as the hub spells it, e.g. `"apache-2.0"`; without it the hub shows none.
        overwrite: whether to replace an earlier folder of this kind.

    Returns:
        The folder.

    Raises:
        ValueError: no place to write, no finished run, or a repository that is not owner/name.
    """
    run, path = run if isinstance(run, RunFolder) else RunFolder(run), Path(path)
    check_new_folder(path, NAMES, overwrite)
    repository = repository or f"OWNER/{path.resolve().name}"
    if not HUB_ID.fullmatch(repository):
        raise ValueError(f"repository={repository!r} must have the form owner/name")
    model = run.load_model()
    with whole_folder(path) as written:
        port_weights.export(
            model,
            written,
            backbone="timm" if model.config.backbone.dilation else "hugging-face",
        )
        for name in COPIED:
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, written / name)
        (written / CARD).write_text(model_card(run, model, repository, dataset, license), encoding="utf-8")
        check_new_folder(path, NAMES, overwrite)  # once more: exporting takes a while
    return path
