"""torchvision's augmentations on given draws, and torch's resize of a batch."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

# Where `make venv` puts torchvision, so that transformers does not find it.
BESIDE = Path(sys.prefix) / "beside"


def missing():
    """Import torchvision; return why it cannot be had, or None."""
    if importlib.util.find_spec("torchvision") is None:
        if not (BESIDE / "torchvision").is_dir():
            return f"torchvision is missing: make venv puts it into {BESIDE}"
        sys.path.append(str(BESIDE))
    try:
        import torchvision
    except RuntimeError:  # built for another torch (CUDA, CPU): its compiled operators, of which none is needed, fail
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        missing.library = torch.library.Library("torchvision", "DEF")  # lives as long as the process
        for operator in ("nms", "qnms"):
            missing.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    return None


@contextmanager
def _drawing(rand=None, randint=None, randperm=None):
    """torch's random functions replaced by given ones."""
    names = {"rand": rand, "randint": randint, "randperm": randperm}
    replaced = [patch.object(torch, name, function) for name, function in names.items() if function is not None]
    for one in replaced:
        one.start()
    try:
        yield
    finally:
        for one in replaced:
            one.stop()


def distorted(image, coins, draws, channels):
    """`RandomPhotometricDistort` of a uint8 image `(height, width, 3)`.

    Args:
        image: uint8.
        coins: six in [0, 1): of brightness, contrast, saturation, hue, contrast first, channels.
        draws: four in [0, 1), of the first four.
        channels: their order.
    """
    from torchvision.transforms import v2

    values, numbers = [], iter(coins)
    for place in range(4):
        values.append(next(numbers))
        if values[-1] < 0.5:
            values.append(draws[place])
    values = iter([*values, *numbers])

    def uniform(tensor, low, high):
        return tensor.fill_(low + (high - low) * next(values))

    with (
        _drawing(lambda *_: torch.tensor([next(values)]), randperm=lambda _: torch.tensor(channels)),
        patch.object(torch.Tensor, "uniform_", uniform),
    ):
        found = v2.RandomPhotometricDistort()(torch.from_numpy(image).permute(2, 0, 1).contiguous())
    return found.permute(1, 2, 0).contiguous()


def zoomed_out(image, boxes, draws):
    """`RandomZoomOut` of an image and its boxes xyxy, always; the draws are three in [0, 1): of side, left and top."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    values = iter([torch.zeros(1), torch.tensor(draws[:1]), torch.tensor(draws[1:])])
    pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
    framed = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=image.shape[:2])
    with _drawing(lambda *_: next(values)):
        found, moved = v2.RandomZoomOut(fill=0, p=1)(pixels, framed)
    return found.permute(1, 2, 0).contiguous().numpy(), moved.as_subclass(torch.Tensor)


def cropped(image, boxes, options, draws):
    """`RandomIoUCrop` and `SanitizeBoundingBoxes` of an image and its boxes xyxy.

    Args:
        image: `(height, width, 3)` uint8.
        boxes: `(objects, 4)` float32.
        options: `(rounds,)`, place of each round's option.
        draws: `(rounds, trials, 4)` float32: of each trial's width, height, left and top.

    Returns:
        The crop, the boxes that are left, and their places among all boxes.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    round_, last, table = -1, None, torch.from_numpy(draws)

    def option(**_):
        nonlocal round_, last
        round_, last = round_ + 1, None
        return torch.tensor([options[round_]])

    def pair(_):
        """A trial draws one pair, and a second one unless its first has a wrong ratio."""
        nonlocal last
        trial = sys._getframe(1).f_locals["_"]
        first = trial != last
        last = trial
        return table[round_, trial, :2] if first else table[round_, trial, 2:]

    pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
    framed = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=image.shape[:2])
    with _drawing(pair, option):
        found = v2.RandomIoUCrop()({"image": pixels, "boxes": framed, "labels": torch.arange(len(boxes))})
    found = v2.SanitizeBoundingBoxes(min_size=1)(found)
    return (
        found["image"].permute(1, 2, 0).contiguous().numpy(),
        found["boxes"].as_subclass(torch.Tensor),
        found["labels"],
    )


def interpolated(images, size, mode):
    """`F.interpolate` of a batch `(batch, height, width, channels)` float32, by the defaults of the mode."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return torch.nn.functional.interpolate(pixels, size=tuple(size), mode=mode).permute(0, 2, 3, 1).contiguous()
