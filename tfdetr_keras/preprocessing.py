"""Preparation of an image for a model: its size, its canvas, its levels.

A model gives worse answers for images that are prepared differently than in its training, and no error shows it. So the
preparation belongs to the model: it is stored in its configuration, in `.keras` files and in
`preprocessor_config.json`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args

# By which rule images are resized, see `tfdetr_keras.data.sizes.target_size`.
SizeRule = Literal["huggingface", "facebook", "table", "fit", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]
Pair = tuple[int, int]

SIZE = (800, 1333)  # shortest and longest edge, pixels: what published DETRs were trained and measured with
# Of levels 0 … 1, red, green and blue: what published backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OF_RECTANGLES = ("fit", "stretch")  # rules whose size is a height and a width


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preparation of an image for a model; each model has its own, `model.preprocessing`.

    Args:
        size: to which images are resized, pixels: (shortest_edge, longest_edge), or (height, width) with the rules
            "fit" and "stretch".
        rule: how. "huggingface" and "facebook": the shorter side becomes `shortest_edge`, unless the longer one would
            exceed `longest_edge`; they differ by some pixels there. "table": the longer side becomes `longest_edge`,
            whatever the shorter one is (Table Transformer). "fit": as large as fits into height and width. "stretch":
            to exactly this height and width; the ratio of the sides is not kept.
        pad_to: (height, width) of the canvas, which is the area that images are padded to, pixels; None: that of the
            largest image of a batch.
        rescale: factor of the levels 0 … 255.
        mean: subtracted from the rescaled levels of red, green and blue.
        std: by which the difference is divided.
        interpolation: "bilinear" or "bicubic".
        antialias: whether images that become smaller are smoothed.
        multiple_of: the height and the width of a canvas are multiples of this, pixels.

    Raises:
        ValueError: a value that cannot work, or of another kind.
    """

    size: Pair = SIZE
    rule: SizeRule = "huggingface"
    pad_to: Pair | None = None
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    multiple_of: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("rule", SizeRule), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(choices):
                title = "size_rule" if name == "rule" else name
                raise ValueError(f"{title} must be one of {get_args(choices)}, not {getattr(self, name)!r}")
        check_size(self.size, self.rule)
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if not _is_whole(self.multiple_of) or self.multiple_of < 1:
            raise ValueError(f"multiple_of must be a whole number of at least 1, not {self.multiple_of!r}")
        object.__setattr__(self, "multiple_of", int(self.multiple_of))
        if self.pad_to is not None:
            if not is_pair(self.pad_to) or min(self.pad_to) < 1:
                raise ValueError(f"pad_to must be None or (height, width) of at least 1 pixel, not {self.pad_to!r}")
            object.__setattr__(self, "pad_to", (int(self.pad_to[0]), int(self.pad_to[1])))
            if any(side % self.multiple_of for side in self.pad_to):
                raise ValueError(f"pad_to must be in multiples of {self.multiple_of}, not {self.pad_to}")
        if not _is_real(self.rescale) or self.rescale <= 0:
            raise ValueError(f"rescale must be a finite number above 0, not {self.rescale!r}")
        object.__setattr__(self, "rescale", float(self.rescale))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 3 or not all(map(_is_real, values)):
                raise ValueError(f"{name} must be three finite numbers, of red, green and blue, not {values!r}")
            object.__setattr__(self, name, tuple(map(float, values)))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {self.std}")
        if not isinstance(self.antialias, bool):
            raise ValueError(f"antialias must be True or False, not {self.antialias!r}")

    @classmethod
    def of(cls, value: Any) -> Preprocessing:
        """Return a preprocessing unchanged, make one from its fields, or return DETR's published one for None.

        Raises:
            ValueError: none of these, an unknown field, or a value that cannot work.
        """
        if value is None or isinstance(value, cls):
            return value or cls()
        if not isinstance(value, Mapping):
            raise ValueError(f"preprocessing must be a td.Preprocessing, or the mapping of one, not {value!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [str(name) for name in value if name not in known]:
            raise ValueError(f"{', '.join(unknown)}: not a field of Preprocessing; its fields are {', '.join(known)}")
        return cls(**value)

    def changed(
        self, size: Any = None, pad_to: Any = None, size_rule: SizeRule | None = None, multiple_of: int | None = None
    ) -> Preprocessing:
        """Return a copy with some fields changed; None keeps a field.

        Another size removes the canvas, which was for images of the old size, unless a canvas is given, too.

        Raises:
            ValueError: a value that cannot work.
        """
        changes: dict[str, Any] = {} if size_rule is None else {"rule": size_rule}
        if size is not None:
            changes |= {"size": size, "pad_to": None}
        if pad_to is not None:
            changes["pad_to"] = pad_to
        if multiple_of is not None:
            changes["multiple_of"] = multiple_of
        return dataclasses.replace(self, **changes) if changes else self

    @property
    def largest(self) -> Pair:
        """The height and the width of a canvas that holds every image, pixels: `pad_to`, or what `size` allows."""
        if self.pad_to is not None:
            return self.pad_to
        height, width = self.size if self.rule in _OF_RECTANGLES else (self.size[1], self.size[1])
        return self.rounded_up(height), self.rounded_up(width)

    def on_one_canvas(self) -> Preprocessing:
        """Return a copy with a canvas that all images are padded to: its own, or the largest."""
        return dataclasses.replace(self, pad_to=self.largest)

    def check_without_padding(self, title: str) -> None:
        """Raise a `ValueError` if images may be padded, for a model that knows no padding.

        Args:
            title: what people call the model.
        """
        if self.rule != "stretch":
            raise ValueError(
                f"{title} knows no padding, and the rule {self.rule!r} gives images of several sizes, to be padded: "
                'use the rule "stretch", with size=(height, width)'
            )
        if any(side % self.multiple_of for side in self.size) or self.pad_to not in (None, self.size):
            canvas = self.pad_to or (self.rounded_up(self.size[0]), self.rounded_up(self.size[1]))
            raise ValueError(
                f"{title} knows no padding, but images of {self.size[0]} x {self.size[1]} pixels (height x width) "
                f"would be padded to {canvas[0]} x {canvas[1]}: use multiples of {self.multiple_of}, and no pad_to"
            )

    def rounded_up(self, side: int, multiple: int | None = None) -> int:
        """Round a canvas's side, pixels, up to the next multiple: of `multiple_of`, where left out."""
        return side + -side % (multiple or self.multiple_of)

    def __str__(self) -> str:
        """Return the preparation in words."""
        first, second = self.size
        texts = {
            "table": f"longer side to {second} pixels",
            "fit": f"to fit into {first} x {second} pixels (height x width)",
            "stretch": f"stretched to {first} x {second} pixels (height x width)",
        }
        told = [texts.get(self.rule, f"shorter side to {first} pixels, longer to {second} at most")]
        if self.rule == "facebook":
            told[0] += " (facebook's rounding)"
        if self.pad_to is not None:
            told.append(f"padded to {self.pad_to[0]} x {self.pad_to[1]}")
        plain = Preprocessing()
        told += [
            f"{name} {getattr(self, name)}"
            for name in ("rescale", "mean", "std", "interpolation", "antialias", "multiple_of")
            if getattr(self, name) != getattr(plain, name)
        ]
        return "; ".join(told)


def preprocessing_for(
    model: Any,
    preprocessing: Any = None,
    size: Any = None,
    pad_to: Any = None,
    size_rule: SizeRule | None = None,
) -> Preprocessing:
    """Return how images are prepared for a model.

    Args:
        model: its own preprocessing is used if none is given; a model without one counts as a published DETR.
        preprocessing: instead of the model's, or None.
        size: instead of the preprocessing's, or None; likewise the arguments that follow.
        pad_to: instead of its canvas.
        size_rule: instead of its rule.

    Raises:
        ValueError: a value that cannot work; images that would be padded for a model that knows no padding.
    """
    own = getattr(model, "preprocessing", None) if preprocessing is None else preprocessing
    chosen = Preprocessing.of(own).changed(size, pad_to, size_rule)
    if not knows_padding(model):
        chosen.check_without_padding(model.title)
    return chosen


def knows_padding(model: Any) -> bool:
    """Return whether images may be padded for a model; they may for one that does not say, and for none."""
    return bool(getattr(getattr(model, "config", None), "knows_padding", True))


def check_size(size: Any, rule: str) -> None:
    """Raise a `ValueError` if a size is invalid, in general or for a rule."""
    if rule in _OF_RECTANGLES:
        if not is_pair(size) or min(size) < 1:
            raise ValueError(
                f'size must be (height, width) of at least 1 pixel with the rule "{rule}", not {_told(size)}'
            )
    elif not is_pair(size) or not 1 <= size[0] <= size[1]:
        raise ValueError(
            f"size must be (shortest_edge, longest_edge), 1 <= shortest_edge <= longest_edge, not {_told(size)}; with "
            'size_rule "fit" or "stretch" it is (height, width)'
        )


def is_pair(value: Any) -> bool:
    """Return whether a value is two whole numbers."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_whole, value))


def _told(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
