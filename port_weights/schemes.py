"""Naming schemes: the tables of names with the prefixes that they carry in a checkpoint, read in both directions."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator

from port_weights.layouts import Layout
from port_weights.names import (
    FACEBOOK_HEADS,
    FACEBOOK_TRANSFORMERS,
    HUGGING_FACE_BACKBONE,
    HUGGING_FACE_HEADS,
    HUGGING_FACE_MODEL,
    HUGGING_FACE_TRANSFORMERS,
    MASK_HEAD,
    MASK_HEAD_IN_MEMORY,
    TORCHVISION_BACKBONE,
    Row,
)

# Counters of ordinary batch norm and of averaged weights, which some checkpoints carry and nothing reads; classifiers
# of a backbone alone.
IGNORED = re.compile(r"(.*\.)?num_batches_tracked|n_averaged|fc\.(weight|bias)|classifier\.1\.(weight|bias)")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way of naming a checkpoint's tensors.

    Args:
        title: what to call it.
        rows: the table, PyTorch names with the prefixes of this checkpoint.
    """

    title: str
    rows: tuple[Row, ...]

    def torch_name(self, path: str) -> tuple[str, Layout] | None:
        """PyTorch name and layout of the Keras variable at `path`; None where this scheme does not hold it."""
        for torch_pattern, keras_pattern, layout in self.rows:
            if match := _expression(keras_pattern).fullmatch(path):
                return _fill(torch_pattern, {key: int(value) for key, value in match.groupdict().items()}), layout
        return None

    def keras_paths(self, name: str) -> Iterator[tuple[str, Layout]]:
        """Keras paths and layouts of a PyTorch tensor: one, three for a packed one, none for an unknown one."""
        for torch_pattern, keras_pattern, layout in self.rows:
            if match := _expression(torch_pattern).fullmatch(name):
                numbers = {key: int(value) for key, value in match.groupdict().items()}
                offsets = {key: offset for key, offset in _placeholders(torch_pattern)}
                yield _fill(keras_pattern, {key: value - offsets[key] for key, value in numbers.items()}), layout


_PLACEHOLDER = re.compile(r"\{(\w)(-1)?\}")


def _placeholders(pattern: str) -> list[tuple[str, int]]:
    return [(key, int(offset or 0)) for key, offset in _PLACEHOLDER.findall(pattern)]


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts, seen, end = [], set(), 0
    for match in _PLACEHOLDER.finditer(pattern):
        key = match.group(1)
        parts += [re.escape(pattern[end : match.start()]), f"(?P={key})" if key in seen else f"(?P<{key}>\\d+)"]
        seen.add(key)
        end = match.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]))


def _fill(pattern: str, numbers: dict[str, int]) -> str:
    return _PLACEHOLDER.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), pattern)


def _prefixed(rows: Iterable[Row], prefix: str) -> list[Row]:
    return [(prefix + name, path, layout) for name, path, layout in rows]


def scheme(
    backbone: str = "hugging-face", transformer: str = "hugging-face", model_prefix: str = "", backbone_prefix: str = ""
) -> Scheme:
    """Puts a scheme together from its tables.

    Args:
        backbone: `"hugging-face"` (HF-ResNet names) or `"torchvision"` (also timm's and facebookresearch's).
        transformer: `"hugging-face"` (on disk), `"hugging-face-4"` (the same by version 4, with learned positions),
            `"hugging-face-in-memory"` (version 5), `"facebookresearch"` or `"none"` for a backbone alone; for
            Conditional DETR `"conditional-hugging-face"`, `"conditional-hugging-face-in-memory"`, or
            `"conditional-detr"` (its authors').
        model_prefix: prefix of transformer and heads, `"detr."` in panoptic checkpoints.
        backbone_prefix: the whole prefix of the backbone's tensors.
    """
    backbones = {"hugging-face": HUGGING_FACE_BACKBONE, "torchvision": TORCHVISION_BACKBONE}
    rows = _prefixed(backbones[backbone], backbone_prefix)
    rows += MASK_HEAD_IN_MEMORY if transformer.endswith("in-memory") else MASK_HEAD
    if transformer in FACEBOOK_TRANSFORMERS:
        rows += _prefixed([*FACEBOOK_TRANSFORMERS[transformer], *FACEBOOK_HEADS], model_prefix)
    elif transformer != "none":
        table = HUGGING_FACE_TRANSFORMERS[transformer]
        bare = not model_prefix.endswith(HUGGING_FACE_MODEL)
        heads_prefix = model_prefix if bare else model_prefix.removesuffix(HUGGING_FACE_MODEL)
        rows += _prefixed(table, model_prefix) + _prefixed(HUGGING_FACE_HEADS, heads_prefix)
    title = f"{backbone} backbone" if transformer == "none" else f"{transformer}, {backbone} backbone"
    return Scheme(title, tuple(rows))


# A tensor that tells each transformer from those that come after it.
LANDMARKS = (
    ("conditional-detr", "transformer.decoder.layers.0.sa_qcontent_proj.weight"),
    ("conditional-hugging-face", "decoder.layers.0.sa_qcontent_proj.weight"),
    ("conditional-hugging-face-in-memory", "decoder.layers.0.self_attn.q_content_proj.weight"),
    ("facebookresearch", "transformer.decoder.layers.0.linear1.weight"),
    ("hugging-face-4", "backbone.position_embedding.row_embeddings.weight"),
    ("hugging-face", "decoder.layers.0.fc1.weight"),
    ("hugging-face-in-memory", "decoder.layers.0.mlp.fc1.weight"),
)


def detect_scheme(names: Iterable[str]) -> Scheme:
    """Recognises the naming scheme of a checkpoint by a few tensors that only it has.

    Raises:
        ValueError: no known scheme names its tensors so.
    """
    names = set(names)
    backbone, backbone_prefix = _find_backbone(names)
    for transformer, landmark in LANDMARKS:
        for prefix in ("", "detr.", "model.", "detr.model."):
            if backbone and prefix + landmark in names:
                return scheme(backbone, transformer, prefix, backbone_prefix)
    if backbone and not any("decoder" in name for name in names):
        return scheme(backbone, "none", "", backbone_prefix)
    examples = ", ".join(sorted(names)[:5]) or "no tensors at all"
    raise ValueError(
        "these are not DETR weights of a known naming scheme (Hugging Face on disk or in memory, facebookresearch, or "
        f"a torchvision, timm or Hugging Face ResNet alone); the checkpoint holds {examples} …"
    )


def _find_backbone(names: set[str]) -> tuple[str, str]:
    for name in names:
        if name.endswith("embedder.embedder.convolution.weight"):
            return "hugging-face", name.removesuffix("embedder.embedder.convolution.weight")
        if name.endswith("layer1.0.conv1.weight"):
            return "torchvision", name.removesuffix("layer1.0.conv1.weight")
    return "", ""
