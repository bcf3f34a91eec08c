"""Record what the authors' RT-DETR and RT-DETRv2 compute in training, so that ours can be compared with it anywhere.

transformers cannot be the oracle for two things: its gradients go by another way from layer to layer, and a fresh model
of it does not start as the authors'. This script runs the authors' code itself, a checkout of
https://github.com/lyuwenyu/RT-DETR at 068dfde65f2667ad6555883c69d73de886518cad; of that it loads the models and losses
alone, without what reads data and configurations. It imports nothing of this project but `drawn`, beside it:

    python tests/golden/record_rt_detr.py CHECKOUT [FOLDER_OF_TORCHVISION]

Written beside this file, `rt_detr.json`:
    versions: of Python, torch and torchvision, and the commit.
    architecture: of the small models of each kind; their weights, images, targets and denoising are those of `drawn`.
    sizes, counts, slots: of the images, the objects in each, and for how many slots denoising is drawn.
    trained: of each kind `losses` by our names and without weights, `loss` being the weighted total; of each trained
        parameter's gradient by name its norm and its product with `drawn.direction`; and `statistics`, the same of the
        moving means and variances after the step; `outputs`, the same of `logits` and `boxes` in evaluation before it;
        and `names`, how many tensors the state has, and a sum over their names. Computed in float64, but for what the
        code makes float32.
    initial: for a fresh model of each kind, of each parameter by name its mean, standard deviation and largest
        absolute value.
"""

import importlib
import json
import platform
import subprocess
import sys
import types
import zlib
from pathlib import Path
from unittest import mock

import drawn
import numpy as np
import torch

CHECKOUT = Path(sys.argv[1])
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

CLASSES, QUERIES, LAYERS, DENOISING = 7, 20, 3, 12
SIZES, COUNTS = ((96, 96), (96, 96), (96, 96)), (5, 0, 3)
SLOTS = 2 * max(DENOISING, *COUNTS)
COMMON = {
    "classes": CLASSES,
    "queries": QUERIES,
    "layers": LAYERS,
    "denoising": DENOISING,
    "heads": 4,
    "width": 32,
    "decoder_ffn": 40,
    "encoder_ffn": 48,
    "blocks": [1, 1, 1, 1],
}
KINDS = {
    "v1": {"encoder_width": 48, "expansion": 0.5, "points": 4, "bottleneck": False, "frozen_norm": False},
    "v2": {"encoder_width": 32, "expansion": 1.0, "points": 3, "bottleneck": True, "frozen_norm": False},
    "v2_discrete": {"encoder_width": 32, "expansion": 0.5, "points": 4, "bottleneck": False, "frozen_norm": True},
}
WEIGHTS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
COSTS = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def register(kind=None):
    """Stand for their registry, a decorator with or without parentheses."""
    return register if kind is None else kind


def package(root, folder):
    """Make modules of theirs importable below `root`, without what their packages import at once."""
    for name in ("", "core", "data", "misc", "nn", "nn.backbone", "zoo", "zoo.rtdetr"):
        module = types.ModuleType(f"{root}.{name}".rstrip("."))
        module.__path__ = [str(CHECKOUT / folder / "src" / name.replace(".", "/"))]
        sys.modules[module.__name__] = module
    sys.modules[f"{root}.core"].register = register
    sys.modules[f"{root}.data"].DataLoader = object


package("src", "rtdetr_pytorch")  # which imports itself by this name
package("second", "rtdetrv2_pytorch")


def module(kind, name):
    """Import a module of the code of a kind."""
    return importlib.import_module(f"{'src' if kind == 'v1' else 'second'}.{name}")


def build(kind):
    """Their detector of a kind over a ResNet of one block a stage."""
    own = KINDS[kind]
    presnet, depth = module(kind, "nn.backbone.presnet"), 50 if own["bottleneck"] else 18
    presnet.ResNet_cfg[depth] = COMMON["blocks"]
    backbone = presnet.PResNet(depth, return_idx=[1, 2, 3], freeze_norm=own["frozen_norm"], pretrained=False)
    encoder = module(kind, "zoo.rtdetr.hybrid_encoder").HybridEncoder(
        in_channels=backbone.out_channels,
        hidden_dim=own["encoder_width"],
        nhead=COMMON["heads"],
        dim_feedforward=COMMON["encoder_ffn"],
        expansion=own["expansion"],
    )
    options = {
        "num_classes": CLASSES,
        "hidden_dim": COMMON["width"],
        "num_queries": QUERIES,
        "feat_channels": [own["encoder_width"]] * 3,
        "nhead": COMMON["heads"],
        "dim_feedforward": COMMON["decoder_ffn"],
        "num_denoising": DENOISING,
    }
    if kind == "v1":
        decoder = module(kind, "zoo.rtdetr.rtdetr_decoder").RTDETRTransformer(
            **options, num_decoder_points=own["points"], num_decoder_layers=LAYERS
        )
    else:
        decoder = module(kind, "zoo.rtdetr.rtdetrv2_decoder").RTDETRTransformerv2(
            **options,
            num_points=[own["points"]] * 3,
            num_layers=LAYERS,
            cross_attn_method="discrete" if kind == "v2_discrete" else "default",
        )
    return module(kind, "zoo.rtdetr.rtdetr").RTDETR(backbone, encoder, decoder)


def criterion(kind):
    """Their loss, as their configurations have it."""
    matcher = module(kind, "zoo.rtdetr.matcher").HungarianMatcher(COSTS, use_focal_loss=True)
    options = {"losses": ["vfl", "boxes"], "alpha": 0.75, "gamma": 2.0, "num_classes": CLASSES}
    if kind == "v1":
        return module(kind, "zoo.rtdetr.rtdetr_criterion").SetCriterion(matcher, WEIGHTS, **options)
    return module(kind, "zoo.rtdetr.rtdetrv2_criterion").RTDETRCriterionv2(matcher, WEIGHTS, **options)


def drawing():
    """Stand for torch's functions that draw denoising, whose calls come in this order."""
    draws = drawn.denoising(CLASSES, len(SIZES), SLOTS)
    queue = iter([draws["flip"], draws["label"], (draws["sign"] + 1) / 2, draws["part"]])

    def like(tensor, *limits, dtype=None):
        values = np.ascontiguousarray(next(queue)[:, : tensor.shape[1]])
        return torch.from_numpy(values).to(dtype or tensor.dtype)

    return mock.patch.multiple(torch, rand_like=like, randint_like=like)


def our_name(name):
    """Our name of a term of their loss."""
    name = name.replace("_vfl", "_ce").replace("_dn_", "_denoising_").replace("_enc_", "_encoder_")
    return name.replace(f"_aux_{LAYERS - 1}", "_encoder_0").replace("_aux_", "_")  # the first version's last but one


def measured(name, array):
    """The norm of an array, and its product with the direction of its name."""
    return [float(np.linalg.norm(array)), float((array * drawn.direction(name, array.shape)).sum())]


def trained(kind):
    """Outputs in evaluation, then losses, gradients and statistics of one batch."""
    model = build(kind)
    state = model.state_dict()
    kept = ("num_batches_tracked", "num_points_scale")
    for name, tensor in state.items():
        if not name.endswith(kept):
            state[name] = torch.from_numpy(drawn.weight(name, tuple(tensor.shape)))
    model.load_state_dict(state, strict=True)
    model = model.double()
    pixels, _ = drawn.images(*SIZES)
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    targets = [
        {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes).double()}
        for labels, boxes in drawn.targets(CLASSES, *COUNTS)
    ]
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        evaluated = model.eval()(pixels)
    with drawing():
        outputs = model.train()(pixels, targets)
    losses = criterion(kind)(outputs, targets)
    torch.set_default_dtype(torch.float32)
    total = sum(losses.values())
    total.backward()
    weights = {name: next(weight for term, weight in WEIGHTS.items() if name.startswith(term)) for name in losses}
    gradients = {name: x.grad.numpy() for name, x in model.named_parameters() if x.requires_grad and x.grad is not None}
    norms = [name for name, one in model.named_modules() if isinstance(one, torch.nn.BatchNorm2d)]
    after = model.state_dict()
    statistics = [f"{name}.{moving}" for name in norms for moving in ("running_mean", "running_var")]
    return {
        "losses": {"loss": total.item(), **{our_name(n): value.item() / weights[n] for n, value in losses.items()}},
        "gradients": {name: measured(name, gradient) for name, gradient in gradients.items()},
        "statistics": {name: measured(name, after[name].numpy()) for name in statistics},
        "outputs": {name: measured(name, evaluated[f"pred_{name}"].numpy()) for name in ("logits", "boxes")},
        "names": [len(state), zlib.crc32("\n".join(sorted(state)).encode())],
    }


def initial(kind):
    """What a fresh model's parameters look like."""
    torch.manual_seed(0)
    found = {}
    for name, parameter in build(kind).named_parameters():
        values = parameter.detach().numpy().astype(np.float64)
        found[name] = [float(values.mean()), float(values.std()), float(np.abs(values).max())]
    return found


def main():
    """Write the file."""
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    content = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "commit": commit,
        },
        "architecture": {kind: {**COMMON, **own} for kind, own in KINDS.items()},
        "sizes": SIZES,
        "counts": COUNTS,
        "slots": SLOTS,
        "trained": {kind: trained(kind) for kind in KINDS},
        "initial": {kind: initial(kind) for kind in ("v1", "v2")},
    }
    path = Path(__file__).with_name("rt_detr.json")
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
