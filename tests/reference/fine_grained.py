"""D-FINE's losses in loops over images, layers, queries and sides; and transformers' own of the same outputs.

Nothing here is shared with the package: bins, matching, union and losses are from the paper's words, in float64, with
PyTorch for the gradients alone.
"""

import collections

import numpy as np
import scipy.optimize
import torch

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_fgl": 0.15, "loss_ddf": 1.5}
ALPHA, GAMMA, TEMPERATURE = 0.75, 2.0, 5.0


def bins_of(up, reg_scale, bins):
    """The distances of the bins, one after the other."""
    bound, values = abs(up * reg_scale), []
    for place in range(-bins // 2, bins // 2 + 1):
        size = 2 * bound if abs(place) == bins // 2 else (bound + 1) ** (2 * abs(place) / (bins - 2)) - 1
        values.append(size if place > 0 else -size)
    return values


def corners_of(box):
    """Left, top, right, bottom of cx, cy, w, h, where negative sides are none."""
    cx, cy, w, h = box
    w, h = w.clamp(min=0), h.clamp(min=0)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def overlaps(first, second):
    """IoU and GIoU of two boxes."""
    (a, b, c, d), (e, f, g, h) = corners_of(first), corners_of(second)
    shared = (torch.minimum(c, g) - torch.maximum(a, e)).clamp(min=0)
    shared = shared * (torch.minimum(d, h) - torch.maximum(b, f)).clamp(min=0)
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    hull = (torch.maximum(c, g) - torch.minimum(a, e)) * (torch.maximum(d, h) - torch.minimum(b, f))
    return shared / union, shared / union - (hull - union) / hull


def matching(logits, boxes, labels, true):
    """The pairs (query, object) of an image and a layer at the least cost."""
    cost = np.zeros((len(logits), len(labels)))
    for query, row in np.ndindex(cost.shape):
        p = torch.sigmoid(logits[query, labels[row]])
        focal = 0.25 * (1 - p) ** 2 * -torch.log(p + 1e-8) - 0.75 * p**2 * -torch.log(1 - p + 1e-8)
        apart = (boxes[query] - true[row]).abs().sum()
        cost[query, row] = 2 * focal + 5 * apart - 2 * overlaps(boxes[query], true[row])[1]
    return list(zip(*map(np.ndarray.tolist, scipy.optimize.linear_sum_assignment(cost)), strict=True))


def union(matchings):
    """The object of each query that most matchings give it, and how many queries have several of these."""
    votes, found, ties = collections.Counter(pair for pairs in matchings for pair in pairs), {}, 0
    for query in sorted({query for query, _ in votes}):
        counts = {row: count for (other, row), count in votes.items() if other == query}
        best = sorted(row for row, count in counts.items() if count == max(counts.values()))
        found[query], ties = best[0], ties + (len(best) > 1)
    return list(found.items()), ties


def class_loss(logits, boxes, pairs, labels, true):
    """The varifocal loss of an image and a layer; a query without an object is to have no class."""
    total, objects = 0.0, dict(pairs)
    for query, own in enumerate(logits):
        row = objects.get(query)
        quality = 0.0 if row is None else overlaps(boxes[query], true[row])[0].detach()
        for label, logit in enumerate(own):
            p, is_class = torch.sigmoid(logit.detach()), row is not None and labels[row] == label
            target, weight = (quality, quality) if is_class else (0.0, ALPHA * p**GAMMA)
            loss = -target * torch.nn.functional.logsigmoid(logit)
            loss = loss - (1 - target) * torch.nn.functional.logsigmoid(-logit)
            total = total + weight * loss
    return total


def box_losses(boxes, pairs, true):
    """L1 and GIoU of an image and a layer."""
    l1 = sum((boxes[query] - true[row]).abs().sum() for query, row in pairs)
    return l1, sum(1 - overlaps(boxes[query], true[row])[1] for query, row in pairs)


def side_loss(logits, distance, values):
    """Cross-entropy of a side's distribution, shared by the bins next to the distance."""
    log_p = torch.log_softmax(logits, -1)
    if distance <= values[0]:
        return -log_p[0]
    if distance >= values[-1]:
        return -log_p[-1]
    upper = next(place for place, value in enumerate(values) if value > distance)
    share = (distance - values[upper - 1]) / (values[upper] - values[upper - 1])
    return -(1 - share) * log_p[upper - 1] - share * log_p[upper]


def localization_loss(corners, boxes, references, pairs, true, values, reg_scale):
    """The fine-grained localization loss of an image and a layer."""
    total = 0.0
    for query, row in pairs:
        quality = overlaps(boxes[query], true[row])[0].detach()
        cx, cy, w, h = references[query]
        left, top, right, bottom = corners_of(true[row])
        moves = [(cx - left) / w, (cy - top) / h, (right - cx) / w, (bottom - cy) / h]
        for side, move in enumerate(moves):
            distance = float(abs(reg_scale) * (move - 0.5))
            total = total + quality * side_loss(corners[query].reshape(4, -1)[side], distance, values)
    return total


def distillation_terms(corners, teacher, boxes, teacher_logits, pairs, true, counted):
    """Each edge's weighted divergence from the teacher's, of an image and a layer: of pairs, and of other queries."""
    of_pairs, of_others, objects = [], [], dict(pairs)
    for query in range(len(corners)):
        if not counted[query]:
            continue
        paired = query in objects
        quality = overlaps(boxes[query], true[objects[query]])[0] if paired else teacher_logits[query].sigmoid().max()
        for side in range(4):
            log_p = torch.log_softmax(teacher[query].reshape(4, -1)[side].detach() / TEMPERATURE, -1)
            log_q = torch.log_softmax(corners[query].reshape(4, -1)[side] / TEMPERATURE, -1)
            apart = TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum()
            (of_pairs if paired else of_others).append(quality.detach() * apart)
    return of_pairs, of_others


def losses_of(outputs, targets, up, reg_scale, bins):
    """All losses by our names, unweighted, with the weighted total; and the number of ties in the union."""
    images = range(len(targets["labels"]))
    objects = [int((row >= 0).sum()) for row in targets["labels"]]
    labels = [row[:count] for row, count in zip(targets["labels"], objects, strict=True)]
    true = [row[:count] for row, count in zip(targets["boxes"], objects, strict=True)]
    decoder = {
        "logits": torch.cat([outputs["aux_logits"], outputs["logits"][:, None]], 1),
        "pred_boxes": torch.cat([outputs["aux_boxes"], outputs["pred_boxes"][:, None]], 1),
        **{name: outputs[name] for name in ("corners", "references")},
    }
    sets = {"": decoder, **outputs["prediction_sets"]}
    depth, values = {name: one["logits"].shape[1] for name, one in sets.items()}, bins_of(up, reg_scale, bins)
    matched = {
        (name, layer): [
            matching(one["logits"][i, layer], one["pred_boxes"][i, layer], labels[i], true[i]) for i in images
        ]
        for name, one in sets.items()
        if "queries" not in one
        for layer in range(depth[name])
    }
    unions, ties = zip(*(union([pairs[i] for pairs in matched.values()]) for i in images), strict=True)
    in_union = sum(map(len, unions))
    edges = in_union * 4, (len(images) * decoder["logits"].shape[2] - in_union) * 4
    found = {}
    for name, one in sets.items():
        given = [
            [(int(q), int(row)) for q, row in zip(one["queries"][i, 0], one["objects"][i], strict=True) if q >= 0]
            for i in images
            if "queries" in one
        ]
        mask = one.get("query_mask", torch.ones(one["logits"].shape[2], dtype=torch.bool))
        for layer in range(depth[name]):
            own, of_boxes = (given, given) if given else (matched[name, layer], unions)
            count, of_union = (max(sum(map(len, given)), 1),) * 2 if given else (max(sum(objects), 1), max(in_union, 1))
            suffix = f"_{name}_{layer}" if name else "" if layer == depth[""] - 1 else f"_{layer}"
            logits, boxes = ([one[key][i, layer] for i in images] for key in ("logits", "pred_boxes"))
            ce = [
                class_loss(logits[i][mask], boxes[i][mask], renumbered(own[i], mask), labels[i], true[i])
                for i in images
            ]
            l1, giou = zip(*(box_losses(boxes[i], of_boxes[i], true[i]) for i in images), strict=True)
            found |= {f"loss_ce{suffix}": sum(ce) / count, f"loss_bbox{suffix}": sum(l1) / of_union}
            found |= {f"loss_giou{suffix}": sum(giou) / of_union}
            if "corners" not in one:
                continue
            corners, references = one["corners"], one["references"]
            fgl = [
                localization_loss(corners[i, layer], boxes[i], references[i], of_boxes[i], true[i], values, reg_scale)
                for i in images
            ]
            found |= {f"loss_fgl{suffix}": sum(fgl) / of_union}
            if suffix == "":
                continue
            terms = [
                distillation_terms(
                    corners[i, layer], corners[i, -1], boxes[i], one["logits"][i, -1], of_boxes[i], true[i], mask
                )
                for i in images
            ]
            means = [
                sum(sum(x) for x in of_images) / max(sum(map(len, of_images)), 1)
                for of_images in zip(*terms, strict=True)
            ]
            weights = [edge**0.5 for edge in edges]
            ddf = sum(mean * weight for mean, weight in zip(means, weights, strict=True)) / sum(weights)
            found |= {f"loss_ddf{suffix}": 0.0 if layer == depth[name] - 1 else ddf}
    total = sum(WEIGHTS["_".join(name.split("_")[:2])] * value for name, value in found.items())
    return {"loss": total, **found}, sum(ties)


def renumbered(pairs, mask):
    """Pairs whose queries are numbered among those that count."""
    place = {int(query): new for new, query in enumerate(np.flatnonzero(mask))}
    return [(place[query], row) for query, row in pairs]


def tensors(outputs):
    """Outputs as tensors of float64, those that are trained with gradients."""
    trained = ("logits", "pred_boxes", "aux_logits", "aux_boxes", "corners")
    found = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            found[name] = tensors(value)
        else:
            tensor = torch.from_numpy(np.array(value))
            found[name] = tensor.double().requires_grad_(name in trained) if tensor.is_floating_point() else tensor
    return found


def gradients_of(outputs):
    """The gradients of outputs, zero where there is none."""
    found = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            found[name] = gradients_of(value)
        elif value.requires_grad:
            found[name] = np.zeros(value.shape) if value.grad is None else value.grad.numpy()
    return found


def losses_and_gradients(outputs, targets, up, reg_scale, bins):
    """Losses by name, gradients of the total in the form of the outputs, and the number of ties in the union."""
    outputs = tensors(outputs)
    targets = {"labels": targets["labels"], "boxes": torch.from_numpy(targets["boxes"]).double()}
    losses, ties = losses_of(outputs, targets, up, reg_scale, bins)
    losses["loss"].backward()
    return {name: float(value) for name, value in losses.items()}, gradients_of(outputs), ties


def of_transformers(outputs, targets, up, reg_scale, bins):
    """Losses by transformers' names and gradients of their sum, as its D-FINE hands such outputs to its own loss.

    There the pre-head's logits and boxes come first among the decoder's, and distributions have one layer less.
    """
    from transformers import DFineConfig
    from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss

    outputs = tensors(outputs)
    pre, encoder, noised, noised_pre = (
        outputs["prediction_sets"][name] for name in ("pre", "encoder", "denoising", "denoising_pre")
    )
    used = int(noised["query_mask"].sum())
    logits, boxes = (
        torch.cat(
            [
                torch.cat([noised_pre[key], noised[key]], 1)[:, :, :used],
                torch.cat([pre[key], outputs[earlier], outputs[key][:, None]], 1),
            ],
            2,
        )
        for key, earlier in (("logits", "aux_logits"), ("pred_boxes", "aux_boxes"))
    )
    corners = torch.cat([noised["corners"][:, :, :used], outputs["corners"]], 2)
    references = torch.cat([noised["references"][:, :used], outputs["references"]], 1)
    mended = [torch.tensor(sorted(set(row[row >= 0].tolist()))) for row in noised["queries"][:, 0]]
    groups = len(mended[0]) // int((targets["labels"][0] >= 0).sum())
    labels = [
        {"class_labels": torch.tensor(own[own >= 0]).long(), "boxes": torch.tensor(true[own >= 0]).float()}
        for own, true in zip(targets["labels"], targets["boxes"], strict=True)
    ]
    names = dict.fromkeys(range(logits.shape[-1]), "")
    config = DFineConfig(id2label=names, up=up, reg_scale=reg_scale, max_num_bins=bins)
    total, losses, _ = DFineForObjectDetectionLoss(
        *(logits[:, -1].float(), labels, "cpu", boxes[:, -1].float(), config, logits.float(), boxes.float()),
        enc_topk_logits=encoder["logits"][:, 0].float(),
        enc_topk_bboxes=encoder["pred_boxes"][:, 0].float(),
        denoising_meta_values={
            "dn_positive_idx": mended,
            "dn_num_group": groups,
            "dn_num_split": [used, outputs["logits"].shape[1]],
        },
        predicted_corners=corners.float(),
        initial_reference_points=references[:, None].expand(-1, corners.shape[1], -1, -1).float(),
    )
    total.backward()
    return {"loss": float(total), **{name: float(value) for name, value in losses.items()}}, gradients_of(outputs)
