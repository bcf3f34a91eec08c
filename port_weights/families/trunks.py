"""The backbones that RT-DETR's relatives stand on: how each is found in a file, read, described and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families import hgnet_v2, resnet_vd
from port_weights.families.resnet import backbone_from_tensors
from port_weights.tables import Row
from tfdetr_keras.backbones.hgnet_v2 import HGNetV2Config
from tfdetr_keras.backbones.resnet import ResNetConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A kind of backbone in PyTorch's world.

    Args:
        title: what to call it.
        kind: the class of its configuration.
        model_type: what `config.json` calls it.
        tables: its names, by whose they are: "authors", "hugging-face", and so on.
        find: tensors' names → whose names they are, and what stands before them.
        from_tensors: shapes by Keras path → its configuration.
        from_config: a detector's `config.json`, and shapes → its configuration.
        described: its configuration and a number of levels → what `config.json` says of it.
        as_trained: its configuration, and whether a checkpoint says that its batch normalisation is trained → the
            configuration and the frozen parts that it is trained with.
    """

    title: str
    kind: type
    model_type: str
    tables: Mapping[str, list[Row]]
    find: Callable[[AbstractSet[str]], tuple[str, str]]
    from_tensors: Callable[[Shapes], Any]
    from_config: Callable[[Mapping[str, Any], Shapes], Any]
    described: Callable[[Any, int], dict[str, Any]]
    as_trained: Callable[[Any, bool], tuple[Any, tuple[str, ...]]]


RESNET_VD = Trunk(
    "ResNet-vd",
    ResNetConfig,
    resnet_vd.MODEL_TYPE,
    resnet_vd.BACKBONES,
    resnet_vd.find_backbone_vd,
    backbone_from_tensors,
    resnet_vd.backbone_vd_from_config,
    resnet_vd.backbone_vd_json,
    resnet_vd.as_authors_train,
)
HGNET = Trunk(
    "HGNetV2",
    HGNetV2Config,
    hgnet_v2.MODEL_TYPE,
    hgnet_v2.BACKBONES,
    hgnet_v2.find_hgnet,
    hgnet_v2.hgnet_from_tensors,
    hgnet_v2.hgnet_from_config,
    hgnet_v2.hgnet_json,
    hgnet_v2.as_authors_train,
)


def trunk_of(backbone: Any, trunks: tuple[Trunk, ...]) -> Trunk:
    """Return the trunk of a backbone's configuration.

    Raises:
        ValueError: it is none of these.
    """
    found = next((trunk for trunk in trunks if isinstance(backbone, trunk.kind)), None)
    if found is None:
        raise ValueError(f"a backbone of a {type(backbone).__name__} cannot be written")
    return found


def find_trunk(names: AbstractSet[str], trunks: tuple[Trunk, ...]) -> tuple[Trunk, str, str]:
    """Return the trunk that tensors are of, whose names they have and what stands before; the first, and empty texts.

    Args:
        names: of a checkpoint's tensors.
        trunks: that are looked for.
    """
    for trunk in trunks:
        whose, before = trunk.find(names)
        if whose:
            return trunk, whose, before
    return trunks[0], "", ""


def trunk_in_paths(shapes: Shapes, trunks: tuple[Trunk, ...]) -> Trunk:
    """Return the trunk that variables are of, by their Keras paths."""
    is_hgnet = any(path.startswith("backbone/stem/stem1/") for path in shapes)
    return next((trunk for trunk in trunks if (trunk is HGNET) == is_hgnet), trunks[0])
