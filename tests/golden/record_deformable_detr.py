"""Record what the authors' Deformable DETR computes in training, so that ours can be compared with it anywhere.

transformers cannot be the oracle for two things: its two-stage model does not train its proposals, and a fresh model
of it does not start as the authors'. This script runs the authors' code itself, a checkout of
https://github.com/fundamentalvision/Deformable-DETR at 11169a60c33333af00a4849f1808023eba96a931, without its kernel:
its own `ms_deform_attn_core_pytorch` stands for that. It imports nothing of this project but `drawn`, beside it:

    python tests/golden/record_deformable_detr.py CHECKOUT [FOLDER_OF_TORCHVISION]

Written beside this file, `deformable_detr.json`:
    versions: of Python, torch and torchvision, and the commit.
    architecture: arguments of the small model; its weights, images and targets are those of `drawn`.
    two_stage: losses by name, "loss" being the weighted total; and of each trained parameter's gradient by name its
        norm and its product with `drawn.direction`. Computed in float64, but for what the code makes float32.
    initial: for a fresh model of each kind, of each parameter by name its mean, standard deviation and largest
        absolute value.
"""

import json
import platform
import subprocess
import sys
import types
from pathlib import Path

import drawn
import numpy as np
import torch

CHECKOUT = Path(sys.argv[1])
sys.path[:0] = [str(CHECKOUT)]
sys.path += sys.argv[2:3]

try:
    import torchvision
except RuntimeError:  # built for another torch; of its operators only the names are needed here
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

VERSION = torchvision.__version__
torchvision.__version__ = "1.0"  # their test reads "0.28" as 0.2
sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")

from models import backbone as backbones  # noqa: E402
from models import deformable_detr, deformable_transformer, matcher, position_encoding  # noqa: E402
from models.ops.functions import ms_deform_attn_func  # noqa: E402
from models.ops.modules import ms_deform_attn  # noqa: E402
from torchvision.models.resnet import BasicBlock, ResNet  # noqa: E402
from util.misc import NestedTensor  # noqa: E402

CLASSES, QUERIES = 7, 30
SIZES, COUNTS = ((96, 128), (70, 100)), (5, 3)
ARCHITECTURE = {
    "d_model": 256,
    "nhead": 8,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 64,
    "num_feature_levels": 4,
    "enc_n_points": 2,
    "dec_n_points": 3,
}
CHANNELS = [64, 128, 256, 512]
WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
KINDS = {
    "plain": {"with_box_refine": False, "two_stage": False},
    "with_box_refine": {"with_box_refine": True, "two_stage": False},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


class Attention:
    """What the kernel computes, by their own function for debugging."""

    @staticmethod
    def apply(value, shapes, starts, locations, weights, step):
        return ms_deform_attn_func.ms_deform_attn_core_pytorch(value, shapes.tolist(), locations, weights)


ms_deform_attn.MSDeformAttnFunction = Attention


def build(with_box_refine, two_stage):
    """Their detector over a ResNet of one block a stage."""
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=backbones.FrozenBatchNorm2d)
    body = backbones.BackboneBase(resnet, train_backbone=True, return_interm_layers=True)
    body.num_channels = CHANNELS[1:]  # theirs are those of a ResNet-50, whatever the network
    position = position_encoding.PositionEmbeddingSine(ARCHITECTURE["d_model"] // 2, normalize=True)
    transformer = deformable_transformer.DeformableTransformer(
        **ARCHITECTURE,
        dropout=0.0,
        return_intermediate_dec=True,
        two_stage=two_stage,
        two_stage_num_proposals=QUERIES,
    )
    return deformable_detr.DeformableDETR(
        backbones.Joiner(body, position),
        transformer,
        CLASSES,
        QUERIES,
        ARCHITECTURE["num_feature_levels"],
        with_box_refine=with_box_refine,
        two_stage=two_stage,
    )


def two_stage():
    """Losses and gradients of one batch."""
    model = build(**KINDS["two_stage"])
    state = {
        name: torch.from_numpy(
            drawn.weight(
                name.replace("transformer.decoder.class", "class").replace("transformer.decoder.bbox", "bbox"),
                tuple(tensor.shape),
            )
        )
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True)
    model = model.double().train()
    pixels, mask = drawn.images(*SIZES)
    samples = NestedTensor(torch.from_numpy(pixels).permute(0, 3, 1, 2).double(), torch.from_numpy(mask == 0))
    targets = [
        {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes).double()}
        for labels, boxes in drawn.targets(CLASSES, *COUNTS)
    ]
    layers = ["", *(f"_{i}" for i in range(ARCHITECTURE["num_decoder_layers"] - 1)), "_enc"]
    weights = {f"{name}{layer}": weight for layer in layers for name, weight in WEIGHTS.items()}
    criterion = deformable_detr.SetCriterion(
        CLASSES, matcher.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2), weights, ["labels", "boxes"]
    )
    losses = criterion(model(samples), targets)
    total = sum(losses[name] * weight for name, weight in weights.items())
    total.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad.numpy()
            along = float((gradient * drawn.direction(name, gradient.shape)).sum())
            gradients[name] = [float(np.linalg.norm(gradient)), along]
    return {"losses": {"loss": total.item(), **{n: losses[n].item() for n in weights}}, "gradients": gradients}


def initial(kind):
    """What a fresh model's parameters look like."""
    torch.manual_seed(0)
    found = {}
    for name, parameter in build(**KINDS[kind]).named_parameters(remove_duplicate=False):
        values = parameter.detach().numpy().astype(np.float64)
        found[name] = [float(values.mean()), float(values.std()), float(np.abs(values).max())]
    return found


def main():
    """Write the file."""
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": VERSION,
        "commit": commit,
    }
    content = {
        "versions": versions,
        "architecture": {**ARCHITECTURE, "classes": CLASSES, "queries": QUERIES, "channels": CHANNELS},
        "sizes": SIZES,
        "counts": COUNTS,
        "two_stage": two_stage(),
        "initial": {kind: initial(kind) for kind in KINDS},
    }
    path = Path(__file__).with_name("deformable_detr.json")
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
