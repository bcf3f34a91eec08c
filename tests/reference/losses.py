"""Losses of transformers, and the matching in them: values, and gradients by PyTorch's own differentiation."""

import copy
import re
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import transformers
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from transformers.loss import loss_for_object_detection
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import (
    ForObjectDetectionLoss,
    ForSegmentationLoss,
    HungarianMatcher,
    dice_loss,
    sigmoid_focal_loss,
)
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
from transformers.loss.loss_rt_detr import RTDetrLoss


def targets_of_images(targets, names=("boxes",)):
    """The targets as transformers takes them: a dict for each image, without the rows that are padding."""
    images = []
    for image, classes in enumerate(targets["labels"]):
        real = classes >= 0
        rows = {name: torch.from_numpy(targets[name][image][real]) for name in names if name in targets}
        images.append({"class_labels": torch.from_numpy(classes[real]).long(), **rows})
    return images


def _of_masks(logits, labels, outputs, config, layers):
    masks = outputs["pred_masks"]
    return ForSegmentationLoss(logits, labels, "cpu", outputs["pred_boxes"], masks, config, *layers)


def _of_boxes(loss):
    return lambda logits, labels, outputs, config, layers: loss(
        logits, labels, "cpu", outputs["pred_boxes"], config, *layers
    )


def varifocal(config, labels, matched, paired=(), told=None):
    """RT-DETR's losses of sets of predictions by name, not weighted, and `loss`, their weighted sum.

    Args:
        config: of the model.
        labels: as transformers takes them.
        matched: pairs of a suffix and a set, `logits` and `pred_boxes` by name, that is matched to the objects.
        paired: likewise, whose slots belong to objects from the start.
        told: what transformers knows of these.
    """
    criterion, found, total = RTDetrLoss(config), {}, 0.0
    objects = sum(len(image["class_labels"]) for image in labels)
    sets = [(*one, criterion.matcher(one[1], labels), max(objects, 1)) for one in matched]
    if paired:
        pairs = criterion.get_cdn_matched_indices(told, labels)
        sets += [(*one, pairs, max(objects, 1) * told["dn_num_group"]) for one in paired]
    names = {"loss_vfl": "loss_ce"}
    for suffix, predictions, pairs, count in sets:
        for kind in criterion.losses:
            for name, value in criterion.get_loss(kind, predictions, labels, pairs, count).items():
                found[names.get(name, name) + suffix] = value
                total = total + criterion.weight_dict[name] * value
    return {"loss": total, **found, **criterion.loss_cardinality(matched[0][1], labels, None, None)}


def sets_of_layers(name, logits, boxes):
    """Each layer's suffix, and its predictions by name, of tensors `(batch, layers, …)`."""
    layers = zip(logits.unbind(1), boxes.unbind(1), strict=True)
    return [(f"{name}_{i}", dict(zip(("logits", "pred_boxes"), layer, strict=True))) for i, layer in enumerate(layers)]


def _of_varifocal(logits, labels, outputs, config, layers):
    """Of all decoder layers, without proposals and denoising."""
    *earlier, (_, last) = sets_of_layers("", *(layer.transpose(0, 1) for layer in layers))
    found = varifocal(config, labels, [("", last), *earlier])
    return found.pop("loss"), found, None


def _of_one_group(logits, labels, outputs, config, layers):
    """Of all decoder layers of a model in evaluation mode, which has one group of queries, without proposals."""
    coefficients = {"class_cost": config.class_cost, "bbox_cost": config.bbox_cost, "giou_cost": config.giou_cost}
    parts = ["labels", "boxes", "cardinality"]
    criterion = LwDetrImageLoss(
        LwDetrHungarianMatcher(**coefficients), config.num_labels, config.focal_alpha, parts, group_detr=1
    )
    *earlier, (_, last) = sets_of_layers("", *(layer.transpose(0, 1) for layer in layers))
    found = criterion({**last, "auxiliary_outputs": [one for _, one in earlier]}, labels)
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    kinds = {name: re.sub(r"_\d+$", "", name) for name in found}
    return sum(weights[kinds[name]] * value for name, value in found.items() if kinds[name] in weights), found, None


# For each way of a detector to be trained its loss in transformers, and the configuration whose coefficients that has.
LOSSES = {
    "softmax": (_of_boxes(ForObjectDetectionLoss), transformers.DetrConfig),
    # transformers then weighs the class loss by 1, whatever its configuration says.
    "focal": (_of_boxes(DeformableDetrForObjectDetectionLoss), transformers.ConditionalDetrConfig),
    "masks": (_of_masks, transformers.DetrConfig),
    "varifocal": (_of_varifocal, transformers.RTDetrConfig),
    "iou_aware": (_of_one_group, transformers.LwDetrConfig),
}


def of_layers(outputs, targets, loss="softmax", config=None):
    """Hugging Face's loss of all decoder layers by name, `loss` being the weighted total.

    Args:
        outputs: `logits`, `pred_boxes`, `aux_logits`, `aux_boxes` as tensors, laid out as Keras has them; of a model
            that predicts masks `pred_masks`, too.
        targets: as for Keras.
        loss: a key of `LOSSES`.
        config: that of the model; without one the coefficients are those of the configuration in `LOSSES`.
    """
    stacked = [
        torch.cat([outputs[earlier], outputs[last][:, None]], dim=1).transpose(0, 1)
        for last, earlier in (("logits", "aux_logits"), ("pred_boxes", "aux_boxes"))
    ]
    function, kind = LOSSES[loss]
    if config is None:
        config = kind(use_timm_backbone=False, backbone_config=transformers.ResNetConfig())
        config.num_labels = outputs["logits"].shape[-1] - (loss not in ("focal", "varifocal", "iou_aware"))
    config = copy.deepcopy(config)
    config.auxiliary_loss, config.decoder_layers = True, len(stacked[0])
    labels = targets_of_images(targets, ("boxes", "masks"))
    total, parts, _ = function(outputs["logits"], labels, outputs, config, stacked)
    return {"loss": total, **parts}


def of_arrays(outputs, targets):
    """`of_layers` of outputs that are arrays, and the gradient of the total in each of them."""
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in outputs.items()}
    losses = of_layers(tensors, targets)
    losses["loss"].backward()
    return losses, {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in tensors.items()}


def of_criterion(configuration, logits, pred_boxes, targets):
    """The losses of a configuration's own coefficients, by name with the total, and the gradients of the total.

    Args:
        configuration: the fields that transformers' loss asks for; with `classification`, "softmax" or "focal".
        logits: `(batch, layers, queries, classes)`.
        pred_boxes: `(batch, layers, queries, 4)`.
        targets: as for Keras.
    """
    config = SimpleNamespace(**configuration)
    loss = {"softmax": ForObjectDetectionLoss, "focal": DeformableDetrForObjectDetectionLoss}[config.classification]
    layers = [torch.tensor(x).transpose(0, 1).contiguous().requires_grad_() for x in (logits, pred_boxes)]
    total, parts, _ = loss(
        layers[0][-1],
        targets_of_images(targets),
        "cpu",
        layers[1][-1],
        config,
        outputs_class=layers[0],
        outputs_coord=layers[1],
    )
    total.backward()
    found = {name: float(value) for name, value in {"loss": total, **parts}.items()}
    return found, [x.grad.transpose(0, 1) for x in layers]


def of_masks(logits, masks, queries, num_boxes, dice_coefficient):
    """Focal and dice loss of the queries' masks, and the gradient of focal + dice_coefficient × dice in all logits.

    Args:
        logits: `(batch, queries, h, w)`.
        masks: `(batch, rows, height, width)` bool.
        queries: `(batch, rows)`, which query stands for the row; below 0 none.
        num_boxes: what the sums are divided by.
        dice_coefficient: a weight.
    """
    logits = torch.tensor(logits, requires_grad=True)
    images, rows = np.nonzero(queries >= 0)
    if len(images) == 0:
        return 0.0, 0.0, torch.zeros_like(logits)
    source = logits[images, queries[images, rows]]
    source = F.interpolate(source[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)
    source, target = source[:, 0].flatten(1), torch.from_numpy(masks[images, rows]).float().flatten(1)
    focal, dice = sigmoid_focal_loss(source, target, num_boxes), dice_loss(source, target, num_boxes)
    (focal + dice_coefficient * dice).backward()
    return focal.item(), dice.item(), logits.grad


def cross_entropy(logits, labels, weights, label_smoothing):
    """PyTorch's weighted cross-entropy of all queries."""
    return F.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1),
        torch.from_numpy(labels).flatten(),
        weight=torch.tensor(weights),
        label_smoothing=label_smoothing,
    ).item()


def matching(logits, pred_boxes, targets, **coefficients):
    """For each image the costs `(objects, queries)` that transformers' matcher sees, and its pairs (queries, objects).

    Args:
        logits: `(batch, queries, classes + 1)`.
        pred_boxes: `(batch, queries, 4)`.
        targets: as for Keras.
        **coefficients: of `HungarianMatcher`.
    """
    seen = []

    def recording(matrix):
        seen.append(np.asarray(matrix).T)
        return linear_sum_assignment(matrix)

    outputs = {"logits": torch.from_numpy(logits), "pred_boxes": torch.from_numpy(pred_boxes)}
    with mock.patch.object(loss_for_object_detection, "linear_sum_assignment", recording):
        pairs = HungarianMatcher(**coefficients)(outputs, targets_of_images(targets))
    return list(zip(seen, pairs, strict=True))
