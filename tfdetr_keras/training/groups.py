"""Learning rates by part and by layer: which factor each part of a detector gets in a run."""

from __future__ import annotations

from tfdetr_keras.models.detector import Detector
from tfdetr_keras.training.optimizer import lies_in
from tfdetr_keras.training.settings import Settings


def learning_rate_multipliers(model: Detector, settings: Settings) -> dict[str, float]:
    """Return the factors on the learning rate by path, for the parts of a model that are trained.

    With `layer_decay` d and n parts of the backbone, the i-th from the front gets d^(n − i + 1) times the backbone's
    factor: early layers, which see edges and colours whatever the data are, move least.

    Args:
        model: to train, with its parts frozen.
        settings: of the run, with the recipe's values filled in.

    Raises:
        ValueError: a path that no variable of the model has.

    Source:
        Clark et al. 2020, "ELECTRA", arXiv:2003.10555, table 9; rf-detr's `get_vit_lr_decay_rate` likewise.
    """
    config = model.config
    frozen = set(config.frozen)
    factors: dict[str, float] = {}
    if "backbone" not in frozen:
        factors["backbone"] = settings.backbone_multiplier
        parts = config.backbone.parts
        if settings.layer_decay != 1:
            trained = [variable.path for variable in model.backbone.trainable_variables]
            factors |= {
                f"backbone/{part}": settings.backbone_multiplier * settings.layer_decay ** (len(parts) - place)
                for place, part in enumerate(parts)
                if part not in frozen and any(lies_in(path, f"backbone/{part}") for path in trained)
            }
            # All of the backbone lies in one of its parts.
            parts_with_one = [part for part in factors if part != "backbone"]
            if all(any(lies_in(path, part) for part in parts_with_one) for path in trained):
                del factors["backbone"]
    paths = [variable.path for variable in model.variables]
    for part, factor in settings.learning_rate_multipliers.items():
        if not any(lies_in(path, part) for path in paths):
            raise ValueError(
                f"learning_rate_multipliers: no variable of the model lies in {part!r}; there are, for example, "
                f"{', '.join(config.parts)}"
            )
        factors[part] = factor
    return factors
