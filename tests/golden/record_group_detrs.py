"""Record what the authors' LW-DETR and RF-DETR compute, so that ours can be compared with it anywhere.

transformers is no oracle for rectangles, for grids finer than 50 positions, for masks and for large logits of either,
and a fresh model of it does not start as the authors'. This script runs the authors' code itself: a checkout of
https://github.com/Atten4Vis/LW-DETR at d5e6e6c4add2d24dafb965ced8b50163c50b9788, and the unpacked wheel of `rfdetr`
1.11.2. Of both it loads models, matchers and losses alone, without what reads data, configurations and weights. It
imports nothing of this project but `drawn`, beside it:

    python tests/golden/record_group_detrs.py CHECKOUT WHEEL [FOLDER_OF_TORCHVISION]

An array is `measured`: its norm, and its product with `drawn.direction` of its name. Computed in float64, but for what
the code makes float32. Written beside this file, `group_detrs.json`:
    versions: of Python, torch, torchvision, transformers and rfdetr, and the commit of LW-DETR.
    architecture: of the small models of each kind; their weights, images, targets, masks and points are `drawn`.
    proposals: what stands before the names by which the weights of what proposes are drawn.
    evaluated: of each kind by the size of the image, or several, `outputs` measured, and of each some values at
        `drawn.generator`'s choice; and of the chosen proposals, how many are `invalid`.
    trained: of each kind `sizes` and `counts` of the batch; `losses` by our names and without weights, `loss` being the
        weighted total; of each parameter's `gradients` and of the moving `statistics` after the step the measures;
        `unused`, names of parameters without a gradient; and `names`, how many tensors the state has, and a sum over
        their names. With masks also `points` of each mask in the matching and the losses, and `costs` of the masks in
        the matching, weighted, by layer and image `(groups, objects, queries)`.
    alone: of the losses alone, for given outputs: `losses` likewise, and `gradients` of the outputs.
    initial: for a fresh model of each kind, of each parameter by name its mean, standard deviation and largest
        absolute value.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
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

CHECKOUT, WHEEL = Path(sys.argv[1]), Path(sys.argv[2])
sys.path += [str(CHECKOUT), *sys.argv[3:4]]

try:
    import torchvision
except RuntimeError:  # built for another torch; of its operators only the names are needed here
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

CLASSES, GROUPS, RATIO = 5, 3, 16
COMMON = {
    "classes": CLASSES,
    "groups": GROUPS,
    "queries": 40,
    "layers": 2,
    "d_model": 32,
    "heads": 2,
    "cross_heads": 4,
    "decoder_ffn": 40,
    "points": 2,
    "scales": [1.0],
    "width": 24,
    "vit_heads": 3,
}
LW = {"patch": 16, "windows": 4, "table": 14, "depth": 3, "windowed": [0], "taps": [1, 3]}
RF = {"patch": 4, "windows": 2, "table": 24, "depth": 4, "taps": [2, 4]}
KINDS = {
    "lw": LW,
    "lw_two_levels": {**LW, "scales": [2.0, 0.5], "points": 3},
    "rf": RF,
    "rf_masks": {**RF, "patch": 8, "table": 12, "layers": 3, "queries": 20},
    "rf_masks_global": {**RF, "patch": 8, "table": 12, "windows": 1, "queries": 20},
}
LEVELS = {2.0: "P3", 1.0: "P4", 0.5: "P5"}
# The finest level of the second, and the map of the third, have more than 50 positions along a side.
EVALUATED = {
    "lw": [[[128, 192]], [[128, 128], [64, 192]]],
    "lw_two_levels": [[[128, 192]], [[640, 640]]],
    "rf": [[[96, 96]], [[96, 128]], [[208, 208]], [[256, 256]]],
    "rf_masks": [[[96, 96]], [[96, 128]]],
    "rf_masks_global": [[[96, 128]]],
}
TRAINED = {
    "lw": [[128, 192]] * 3,
    "lw_two_levels": [[64, 448]] * 3,
    "rf": [[32, 208]] * 3,
    "rf_masks": [[96, 128]] * 3,
}
COUNTS = [5, 0, 3]
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_mask_ce": 5.0, "loss_mask_dice": 5.0}
# Of the losses alone: whether there are masks, the objects of each image, and the size of logits.
ALONE = {
    f"{name}, {size}": {"masks": masks, "counts": counts, "scale": scale}
    for masks, title in ((False, ""), (True, " with masks"))
    for name, counts in ((f"objects{title}", [4, 2]), (f"an image without{title}", [3, 0]), (f"none{title}", [0, 0]))
    for size, scale in (("usual", 1.0), ("large", 110.0))
}
SHAPE = {"layers": 2, "queries": 6, "height": 8, "width": 12, "channels": 8, "pixels": [32, 48]}
SAMPLES = 8
DIGITS = 10
# With the weights of this name tokens at the border, which propose nothing, are neither all chosen nor none of them.
PROPOSALS = "fine 258: "


def stub(name, **content):
    """Stand for a module that is not needed, or for its few things that are."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


class Mlp(torch.nn.Module):
    """The two layers that LW-DETR takes from timm."""

    def __init__(self, in_features, hidden_features, act_layer):
        super().__init__()
        self.fc1, self.act = torch.nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = torch.nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


for package in ("fairscale", "fairscale.nn", "timm", "timm.models"):
    stub(package, __path__=[])
stub("fairscale.nn.checkpoint", checkpoint_wrapper=None)
stub("timm.models.layers", DropPath=None, Mlp=Mlp, trunc_normal_=torch.nn.init.trunc_normal_)
stub("MultiScaleDeformableAttention")
for package in ("rfdetr", "rfdetr.models", "rfdetr.utilities", "rfdetr.assets"):  # without what they import at once
    stub(package, __path__=[str(WHEEL / package.replace(".", "/"))])


def build(kind):
    """Their model of a kind, and its loss."""
    return build_lw(KINDS[kind]) if kind.startswith("lw") else build_rf(KINDS[kind], "masks" in kind)


def arguments(own, levels):
    """What the command lines of both have in common."""
    told = COMMON | own
    return {
        "device": "cpu",
        "dec_layers": told["layers"],
        "group_detr": GROUPS,
        "two_stage": True,
        "bbox_reparam": True,
        "lite_refpoint_refine": True,
        "ia_bce_loss": True,
        "cls_loss_coef": WEIGHTS["loss_ce"],
        "bbox_loss_coef": WEIGHTS["loss_bbox"],
        "giou_loss_coef": WEIGHTS["loss_giou"],
        "set_cost_class": 2.0,
        "set_cost_bbox": 5.0,
        "set_cost_giou": 2.0,
        "focal_alpha": 0.25,
        "aux_loss": True,
        "position_embedding": "sine",
        "drop_path": 0.0,
        "dropout": 0.0,
        "decoder_norm": "LN",
        "use_varifocal_loss": False,
        "use_position_supervised_loss": False,
        "pretrained_encoder": None,
        "vit_encoder_num_layers": told["depth"],
        "projector_scale": levels,
        "hidden_dim": told["d_model"],
        "sa_nheads": told["heads"],
        "ca_nheads": told["cross_heads"],
        "dim_feedforward": told["decoder_ffn"],
        "dec_n_points": told["points"],
        "num_queries": told["queries"],
        "num_select": told["queries"],
    }


def build_lw(own):
    """LW-DETR over a narrow ViT."""
    told = COMMON | own
    lwdetr, backbone = (importlib.import_module(f"models.{name}") for name in ("lwdetr", "backbone.backbone"))
    whole = backbone.ViT

    def narrow(**options):
        return whole(**options | {"embed_dim": told["width"], "num_heads": told["vit_heads"]})

    args = arguments(own, [LEVELS[scale] for scale in told["scales"]]) | {
        "dataset_file": "coco",
        "encoder": "vit_tiny",
        "window_block_indexes": told["windowed"],
        "out_feature_indexes": [tap - 1 for tap in told["taps"]],
    }
    with mock.patch.object(backbone, "ViT", narrow), mock.patch.object(lwdetr, "LWDETR", of_classes(lwdetr.LWDETR)):
        model, criterion, _ = lwdetr.build(types.SimpleNamespace(**args))
    for part in model.modules():
        if type(part).__name__ == "MSDeformAttn":
            part.export()  # of its two ways, the one without CUDA
    return model, criterion


def of_classes(kind):
    """Make models of a kind with fewer classes than COCO's."""
    return lambda *args, num_classes, **options: kind(*args, num_classes=CLASSES, **options)


def build_rf(own, has_masks):
    """RF-DETR over a narrow DINOv2."""
    told = COMMON | own
    lwdetr, dinov2 = (importlib.import_module(f"rfdetr.models.{name}") for name in ("lwdetr", "backbone.dinov2"))
    narrow = dinov2.get_config("small", use_registers=False) | {
        "hidden_size": told["width"],
        "num_hidden_layers": told["depth"],
        "num_attention_heads": told["vit_heads"],
    }
    defaults = importlib.import_module("rfdetr.models._defaults").MODEL_DEFAULTS
    args = dataclasses.asdict(defaults) | arguments(own, [LEVELS[scale] for scale in told["scales"]])
    args |= {
        "num_classes": CLASSES - 1,
        "encoder": "dinov2_windowed_small",
        "out_feature_indexes": told["taps"],
        "patch_size": told["patch"],
        "num_windows": told["windows"],
        "positional_encoding_size": told["table"],
        "resolution": told["table"] * told["patch"],
        "pretrain_weights": "given",  # or else DINOv2's are fetched
        "freeze_encoder": False,
        "layer_norm": True,
        "backbone_lora": False,
        "gradient_checkpointing": False,
        "dual_projector": False,
        "segmentation_head": has_masks,
        "mask_downsample_ratio": 4,
        "mask_ce_loss_coef": WEIGHTS["loss_mask_ce"],
        "mask_dice_loss_coef": WEIGHTS["loss_mask_dice"],
        "mask_point_sample_ratio": RATIO,
    }
    args = types.SimpleNamespace(**args)
    with (
        mock.patch.object(dinov2, "get_config", return_value=narrow),
        mock.patch.dict(dinov2.size_to_width, small=told["width"]),
    ):
        model = lwdetr.build_model(args)
    return model, lwdetr.build_criterion_and_postprocessors(args)[0]


class Points:
    """Stands for torch's function that draws the points of masks: those of a pair of query and object are its own.

    Args:
        criterion: whose points they are.
        counts: objects of each image.
        queries: of each group.
        layers: of the decoder; of these the last is matched first, and the encoder's proposals last.
    """

    def __init__(self, criterion, counts, queries, layers):
        self.counts, self.queries = counts, queries
        decoder = [f"layer{layer}" for layer in range(layers)]
        self.layers = [decoder[-1], *decoder[:-1], "encoder"]
        self.numbers, self.costs, self.queue = {}, {}, []
        cost, loss = criterion.matcher._compute_mask_costs, criterion.loss_masks
        in_matching, in_losses = iter(self.layers), iter(self.layers)

        def compute_mask_costs(outputs, targets):
            layer = next(in_matching)
            self.queue = [(f"{layer}, matching", None)]
            found = cost(outputs, targets)
            self._keep(layer, WEIGHTS["loss_mask_ce"] * found[0] + WEIGHTS["loss_mask_dice"] * found[1])
            return found

        def loss_masks(outputs, targets, indices, num_boxes):
            layer = next(in_losses)
            self.queue = [(f"{layer}, {name}", indices) for name in ("candidates", "others")]
            return loss(outputs, targets, indices, num_boxes)

        criterion.matcher._compute_mask_costs, criterion.loss_masks = compute_mask_costs, loss_masks

    def _keep(self, layer, costs):
        rows = costs.reshape(len(self.counts), GROUPS, self.queries, -1).numpy().swapaxes(2, 3)
        ends = np.cumsum(self.counts)
        for image, (count, end) in enumerate(zip(self.counts, ends, strict=True)):
            if count:
                name = f"{layer}, image{image}"
                self.costs[name] = measured(name, rows[image, :, end - count : end])

    def __call__(self, masks, number, _, device=None):
        """Draw as `torch.rand` is called."""
        name, pairs = self.queue.pop(0)
        self.numbers[name.partition(", ")[2]] = number
        if pairs is None:
            return torch.from_numpy(drawn.points(name, masks, number)).double()
        every = drawn.points(name, len(self.counts), GROUPS, max(self.counts), number)
        own = [every[image, rows // self.queries, objects] for image, (rows, objects) in enumerate(pairs)]
        return torch.from_numpy(np.concatenate(own)).double()


@contextlib.contextmanager
def in_float64(points=None):
    """Compute in float64 what follows the usual type, or is cast to float32."""
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
            if points is not None:
                stack.enter_context(mock.patch.object(torch, "rand", points))
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def our_name(name):
    """Our name of a term of their loss."""
    return name.replace("_enc", "_encoder_0").replace("mask_dice", "dice").replace("mask_ce", "mask")


def totalled(losses):
    """The weighted total, and by our names the terms that count."""
    weights = {name: WEIGHTS[name.replace("_enc", "").rstrip("_0123456789")] for name in losses if "loss" in name}
    total = sum(weight * losses[name] for name, weight in weights.items())
    return total, {"loss": total.item(), **{our_name(name): losses[name].item() for name in weights}}


def measured(name, array):
    """The norm of an array, and its product with the direction of its name."""
    return [float(np.linalg.norm(array)), float((array * drawn.direction(name, array.shape)).sum())]


def sampled(name, array):
    """Some values of an array, at places drawn by its name."""
    places = drawn.generator(f"places of {name}").integers(0, array.size, SAMPLES)
    return array.ravel()[places].tolist()


def with_weights(kind):
    """Their model of a kind with drawn weights, and its loss."""
    model, criterion = build(kind)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.dtype.is_floating_point:
            drawn_as = PROPOSALS + name if ".enc_out" in name else name
            state[name] = torch.from_numpy(drawn.weight(drawn_as, tuple(tensor.shape)))
    model.load_state_dict(state, strict=True)
    return model.double(), criterion


def images(sizes):
    """Images as the model takes them."""
    pixels, mask = drawn.images(*sizes)
    pixels, padding = torch.from_numpy(pixels).permute(0, 3, 1, 2).double(), torch.from_numpy(mask) == 0
    return [image[:, : (~own).any(1).sum(), : (~own).any(0).sum()] for image, own in zip(pixels, padding, strict=True)]


def evaluated(kind, sizes):
    """Outputs in evaluation."""
    model, _ = with_weights(kind)
    with torch.no_grad(), in_float64():
        outputs = model.eval()(images(sizes))
    names = {"logits": "pred_logits", "pred_boxes": "pred_boxes", "pred_masks": "pred_masks"}
    found = {ours: outputs[theirs].numpy() for ours, theirs in names.items() if theirs in outputs}
    return {
        "sizes": sizes,
        "outputs": {name: measured(name, array) for name, array in found.items()},
        "values": {name: sampled(name, array) for name, array in found.items()},
        "invalid": int((outputs["enc_outputs"]["pred_boxes"] == 0).all(-1).sum()),
    }


def trained(kind, sizes):
    """Losses, gradients and statistics of one batch."""
    told = COMMON | KINDS[kind]
    model, criterion = with_weights(kind)
    pairs = drawn.targets(CLASSES, *COUNTS)
    targets = [
        {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes).double()} for labels, boxes in pairs
    ]
    points = None
    if "masks" in kind:
        for target, masks in zip(targets, drawn.masks(pairs, *sizes[0]), strict=True):
            target["masks"] = torch.from_numpy(masks)
        points = Points(criterion, COUNTS, told["queries"], told["layers"])
    with in_float64(points):
        outputs = model.train()(images(sizes))
        total, losses = totalled(criterion.train()(outputs, targets))
    total.backward()
    gradients = {name: x.grad.numpy() for name, x in model.named_parameters() if x.grad is not None}
    after = model.state_dict()
    statistics = [name for name in after if name.endswith(("running_mean", "running_var"))]
    return {
        "sizes": sizes,
        "counts": COUNTS,
        "losses": losses,
        "gradients": {name: measured(name, gradient) for name, gradient in gradients.items() if gradient.any()},
        "unused": [name for name, _ in model.named_parameters() if name not in gradients or not gradients[name].any()],
        "statistics": {name: measured(name, after[name].numpy()) for name in statistics},
        "names": [len(after), zlib.crc32("\n".join(sorted(after)).encode())],
        "invalid": int((outputs["enc_outputs"]["pred_boxes"] == 0).all(-1).sum()),
        **({} if points is None else {"points": points.numbers, "costs": points.costs}),
    }


def alone(masks, counts, scale):
    """The losses for given outputs, and the gradients of these."""
    _, criterion = build("rf_masks" if masks else "rf")
    layers, rows = SHAPE["layers"] + 1, GROUPS * SHAPE["queries"]  # of the decoder, and the encoder's proposals
    given = {
        "logits": scale * np.sign(drawn.normal("logits", layers, 2, rows, CLASSES)),
        "boxes": 0.3 + 0.1 * drawn.normal("boxes", layers, 2, rows, 4),
        "features": scale * drawn.normal("features", layers, 2, *(SHAPE[x] for x in ("channels", "height", "width"))),
        "queries": drawn.normal("queries", layers, 2, rows, SHAPE["channels"]),
        "bias": drawn.normal("bias", 1),
    }
    given = {name: torch.from_numpy(array).double().requires_grad_() for name, array in given.items()}
    pairs = drawn.targets(CLASSES, *counts)
    targets = [
        {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes).double()} for labels, boxes in pairs
    ]
    points = None
    if masks:
        for target, own in zip(targets, drawn.masks(pairs, *SHAPE["pixels"]), strict=True):
            target["masks"] = torch.from_numpy(own)
        points = Points(criterion, counts, SHAPE["queries"], SHAPE["layers"])

    def of_layer(layer):
        found = {f"pred_{name}": given[name][layer] for name in ("logits", "boxes")}
        if masks:
            own = {"spatial_features": given["features"][layer], "query_features": given["queries"][layer]}
            found["pred_masks"] = {**own, "bias": given["bias"]}
        return found

    *decoder, last, encoder = (of_layer(layer) for layer in range(layers))
    with in_float64(points):
        total, losses = totalled(criterion.train()({**last, "aux_outputs": decoder, "enc_outputs": encoder}, targets))
    total.backward()
    gradients = {name: x.grad.numpy() for name, x in given.items() if x.grad is not None}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    return {
        "masks": masks,
        "counts": counts,
        "scale": scale,
        "losses": losses,
        "gradients": {name: measured(name, gradient) for name, gradient in gradients.items()},
    }


def initial(kind):
    """What a fresh model's parameters look like."""
    torch.manual_seed(0)
    found = {}
    for name, parameter in build(kind)[0].named_parameters():
        values = parameter.detach().numpy().astype(np.float64)
        found[name] = [float(values.mean()), float(values.std()), float(np.abs(values).max())]
    return found


def rounded(content):
    """The content with fewer digits of its numbers."""
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.{DIGITS}g}") if isinstance(content, float) else content


def main():
    """Write the file."""
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (wheel,) = importlib.metadata.distributions(name="rfdetr", path=[str(WHEEL)])
    content = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "rfdetr": wheel.version,
            "commit": commit,
        },
        "architecture": {kind: {**COMMON, **own} for kind, own in KINDS.items()},
        "evaluated": {kind: [evaluated(kind, sizes) for sizes in batches] for kind, batches in EVALUATED.items()},
        "trained": {kind: trained(kind, sizes) for kind, sizes in TRAINED.items()},
        "proposals": PROPOSALS,
        "shape": SHAPE,
        "alone": {name: alone(**told) for name, told in ALONE.items()},
        "initial": {kind: initial(kind) for kind in TRAINED},
    }
    path = Path(__file__).with_name("group_detrs.json")
    path.write_text(json.dumps(rounded(content), indent=1) + "\n")


if __name__ == "__main__":
    main()
