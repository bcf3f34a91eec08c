"""RF-DETR's own package, of which the model, the loss and the matching alone are imported."""

from __future__ import annotations

import sys
import types
from typing import Any

from harness.loaders import TORCHVISION_PACKAGE, torchvision_unavailable
from harness.peers import not_installed, peer_folder

PACKAGE = ("rfdetr==1.11.2", "pyDeprecate==0.9.0")  # which it imports


def missing() -> str | None:
    """Installs the package and torchvision; returns why they cannot be had, if so."""
    return not_installed(PACKAGE) or not_installed(TORCHVISION_PACKAGE)


def configuration(size: str) -> Any:
    """The package's settings of a published model, of all that its model and its loss are made from.

    Nothing is downloaded: weights are random.

    Args:
        size: `"Nano"`, `"Small"`, …
    """
    _make_importable()
    import rfdetr.config
    from rfdetr._namespace import _namespace_from_configs

    model = getattr(rfdetr.config, f"RFDETR{size}Config")(pretrain_weights=None, device="cpu")
    settings = _namespace_from_configs(model, rfdetr.config.TrainConfig(dataset_dir="none"))
    settings.pretrain_weights = ""  # None asks for DINOv2's
    return settings


def _make_importable() -> None:
    if reason := torchvision_unavailable():
        raise RuntimeError(f"rfdetr imports torchvision, and that is {reason}")
    folder = peer_folder(PACKAGE)
    sys.path.append(str(folder))
    # The package as a whole imports what it trains and exports with, which is not installed; its modules do not.
    package = types.ModuleType("rfdetr")
    package.__path__ = [str(folder / "rfdetr")]
    sys.modules.setdefault("rfdetr", package)
