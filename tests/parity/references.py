"""Both sides of a parity test: PyTorch models with random weights, their Keras ports, one batch, stages by one name.

The stages carry the names and layouts of `tfdetr_keras.models.DETR.stages`: feature maps `(batch, h, w, channels)`,
sequences `(batch, positions, d_model)`. They are taken out of PyTorch's own forward pass and keep their gradients.
"""

import dataclasses
import re

import numpy as np
import torch
import transformers
from facebook import FacebookDetr, randomise
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, ForSegmentationLoss

from port_weights import load_model
from port_weights.schemes import detect_scheme

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
RESNETS = {
    "resnet-18": {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": BASIC},
    "resnet-34": {"layer_type": "basic", "depths": (3, 4, 6, 3), "hidden_sizes": BASIC},
    "resnet-50": {"layer_type": "bottleneck", "depths": (3, 4, 6, 3), "hidden_sizes": BOTTLENECK},
    "resnet-101": {"layer_type": "bottleneck", "depths": (3, 4, 23, 3), "hidden_sizes": BOTTLENECK},
    # As deep as ResNet-18, and thin: for what does not depend on the widths.
    "thin": {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": (16, 24, 32, 48), "embedding_size": 16},
}
SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 15,
    "num_labels": 6,
}
# A mask head wants d_model and heads to add up to a multiple of 8.
SEGMENTATION = {"family": "Detr", "task": "Segmentation", "encoder_attention_heads": 8}
CONDITIONAL = {"family": "ConditionalDetr"}
TABLE_TRANSFORMER = {"family": "TableTransformer"}
# The same in the words of `FacebookDetr`.
FACEBOOK_SMALL = {
    "d_model": 32,
    "heads": 4,
    "ffn_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": 15,
    "num_labels": 6,
}
FACEBOOK_BASIC = {"depths": (2, 2, 2, 2), "widths": (16, 24, 32, 48), "stem_width": 16, "layer_type": "basic"}
FACEBOOK_BOTTLENECK = {"depths": (1, 2, 1, 3), "widths": (32, 48, 64, 96), "stem_width": 16, "layer_type": "bottleneck"}

# Weights that cannot change the outputs and whose gradients are rounding errors on both sides. A key's bias adds the
# same to all scores of a query; the first decoder layer's queries are all alike, so that it attends among equals.
# Where a group of channels is one, its normalisation takes the bias before it away.
_WITHOUT_EFFECT = (
    r"(en|de)coder/.*/key(_position)?/bias|decoder/layer0/self_attention/(query|key)(_position)?/(kernel|bias)"
    r"|mask_head/conv[345]/convolution/bias"
)
# Those equal queries are zeros, or what a normalisation makes of zeros, its offset.
_ZERO_QUERIES = {False: "decoder/layer0/self_attention/value/kernel", True: "decoder/layer0/self_attention_norm/gamma"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A PyTorch model in evaluation mode and its Keras port."""

    torch: torch.nn.Module
    keras: object

    def torch_stages(self, batch):
        """PyTorch's stages of a batch in Keras' layout."""
        run = facebook_stages if isinstance(self.torch, FacebookDetr) else hugging_face_stages
        return run(self.torch, *torch_inputs(batch))

    def torch_names(self):
        """For each trainable Keras variable `(path, variable, PyTorch name, layout between the two)`."""
        scheme = detect_scheme(self.torch.state_dict())
        for variable in self.keras.trainable_variables:
            path = variable.path.split("/", 1)[1]
            yield path, variable, *scheme.torch_name(path)

    def has_effect(self, path):
        """Whether a weight can change the outputs at all."""
        return not re.fullmatch(f"{_WITHOUT_EFFECT}|{_ZERO_QUERIES[self.keras.config.pre_norm]}", path)


def hugging_face_model(backbone, family="Detr", task="ObjectDetection", seed=0, **fields):
    """A Hugging Face model over one of `RESNETS` with nothing at its default value; no dropout."""
    resnet = {"embedding_size": 64, **RESNETS[backbone]}
    config = getattr(transformers, f"{family}Config")(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(**resnet, out_features=["stage1", "stage2", "stage3", "stage4"]),
        **{"num_labels": 91, "dropout": 0.0, **fields},
    )
    return randomise(getattr(transformers, f"{family}For{task}")(config), seed).eval()


def hugging_face_pair(folder, backbone, **options):
    """`hugging_face_model` and its port by way of the files that `save_pretrained` writes into `folder`."""
    reference = hugging_face_model(backbone, **options)
    reference.save_pretrained(folder)
    return Pair(reference, load_model(folder))


def facebook_pair(seed=0, **options):
    """A `FacebookDetr`, small where `options` do not say otherwise, and its port by way of the `state_dict`."""
    options = {**FACEBOOK_SMALL, **options}
    reference = randomise(FacebookDetr(**options), seed).eval()
    ported = load_model(reference.state_dict(), heads=options["heads"], dilation=options.get("dilated", False))
    return Pair(reference, ported)


def padded_batch(*sizes, seed=0):
    """Random images of the given (height, width), padded with zeros at the bottom and on the right."""
    generator = np.random.default_rng(seed)
    height, width = np.max(sizes, axis=0)
    pixels = np.zeros((len(sizes), height, width, 3), np.float32)
    mask = np.zeros((len(sizes), height, width), np.int64)
    for image, (h, w) in enumerate(sizes):
        pixels[image, :h, :w] = generator.standard_normal((h, w, 3))
        mask[image, :h, :w] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


def torch_inputs(batch):
    """`pixel_values` `(batch, 3, height, width)` and `pixel_mask`, None where there is none."""
    mask = batch.get("pixel_mask")
    return torch.from_numpy(batch["pixel_values"]).permute(0, 3, 1, 2), None if mask is None else torch.from_numpy(mask)


def _sequence(x):
    return x.flatten(2).mT


def _channels_last(x):
    return x.permute(0, 2, 3, 1)


def hugging_face_stages(model, pixels, mask):
    """The stages of a Hugging Face model, which must have been made with `auxiliary_loss=False`.

    The decoder's hidden states are its input and what each layer gave; the last alone is normalised already.
    """
    caught = {}

    def catch(module, inputs, output):
        caught[type(module).__name__] = output

    detector = getattr(model, "detr", model)
    wanted = ("DetrConvEncoder", "TableTransformerConvEncoder", "PositionEmbedding", "MHAttentionMap")
    modules = [module for module in model.modules() if type(module).__name__.endswith(wanted)]
    hooks = [module.register_forward_hook(catch) for module in [*modules, detector.model.input_projection]]
    try:
        outputs = model(pixels, mask, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    position, maps = (next(caught[name] for name in caught if name.endswith(end)) for end in ("Embedding", "Encoder"))
    *earlier, last = outputs.decoder_hidden_states[1:]
    hidden = torch.stack([*(detector.model.decoder.layernorm(state) for state in earlier), last], dim=1)
    logits, boxes = detector.class_labels_classifier(hidden), detector.bbox_predictor(hidden)
    if hasattr(detector.model.decoder, "ref_point_head"):
        points = detector.model.decoder.ref_point_head(detector.model.query_position_embeddings.weight).sigmoid()
        boxes = boxes + torch.nn.functional.pad(torch.special.logit(points, eps=1e-5), (0, 2))
    boxes = boxes.sigmoid()
    masks = {}
    if model is not detector:
        maps_of_heads = next(caught[name] for name in caught if name.endswith("MHAttentionMap"))
        masks = {"mask_attention": maps_of_heads.permute(0, 1, 3, 4, 2), "pred_masks": outputs.pred_masks}
    encoded = [*outputs.encoder_hidden_states[1:-1], outputs.encoder_last_hidden_state]
    return {
        **{f"backbone.stage{i}": _channels_last(feature) for i, (feature, _) in enumerate(maps, start=1)},
        "mask": maps[-1][1],
        "position": _sequence(position),
        "projection": _sequence(caught["Conv2d"]),
        **{f"encoder.layer{i}": x for i, x in enumerate(encoded)},
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden.unbind(1))},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
        **masks,
    }


def facebook_stages(model, pixels, mask):
    """The stages of a `FacebookDetr`."""
    taps = model(pixels, mask)
    depth = sum(name.startswith("encoder_") for name in taps)
    encoded = [*(taps[f"encoder_{i}"] for i in range(depth - 1)), taps["memory"]]
    return {
        **{f"backbone.stage{int(name[1:]) - 1}": _channels_last(x) for name, x in taps.items() if name[0] == "C"},
        "mask": taps["mask"],
        "position": _sequence(taps["pos"]),
        "projection": _sequence(taps["projected"]),
        **{f"encoder.layer{i}": x for i, x in enumerate(encoded)},
        **{name.replace("_norm_", ".layer"): x for name, x in taps.items() if name.startswith("decoder_norm_")},
        **{name: taps[name] for name in ("logits", "pred_boxes", "aux_logits", "aux_boxes")},
    }


def differences(got, expected):
    """Largest |Δ| of each stage; those between backbone and heads as a part of the stage's largest value."""
    assert set(got) == set(expected)
    found = {}
    for name, tensor in expected.items():
        mine, theirs = np.asarray(got[name], np.float64), tensor.detach().numpy().astype(np.float64)
        assert mine.shape == theirs.shape, name
        is_output = name.endswith(("logits", "boxes", "pred_masks"))
        found[name] = np.abs(mine - theirs).max() / (1.0 if is_output else np.abs(theirs).max())
    return found


def random_targets(counts, num_labels, rows, seed=0, canvas=None):
    """Targets with `counts[i]` objects in image i, padded to `rows`; widths and heights are at least 0.02.

    With `canvas`, height and width in pixels, also masks: random ones, not inside their boxes.
    """
    generator = np.random.default_rng(seed)
    labels = np.full((len(counts), rows), -1, np.int32)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    for image, count in enumerate(counts):
        low = generator.uniform(0.0, 0.7, (count, 2))
        size = generator.uniform(0.02, 0.3, (count, 2))
        labels[image, :count] = generator.integers(0, num_labels, count)
        boxes[image, :count] = np.concatenate([low + size / 2, size], axis=1)
    targets = {"labels": labels, "boxes": boxes}
    if canvas is not None:
        targets["masks"] = (generator.random((*labels.shape, *canvas)) < 0.3) & (labels >= 0)[..., None, None]
    return targets


def hugging_face_losses(outputs, targets, focal=False):
    """Hugging Face's loss of all decoder layers by name, `loss` being the weighted total.

    Args:
        outputs: `logits`, `pred_boxes`, `aux_logits`, `aux_boxes` as PyTorch tensors, laid out as Keras has them; of
            a model that predicts masks `pred_masks`, too.
        targets: as for Keras.
        focal: whether classes are independent. transformers then weighs the class loss by 1, whatever its
            configuration says, and the matching's class cost by 2.
    """
    stacked = [
        torch.cat([outputs[earlier], outputs[last][:, None]], dim=1).transpose(0, 1)
        for last, earlier in (("logits", "aux_logits"), ("pred_boxes", "aux_boxes"))
    ]
    config = (transformers.ConditionalDetrConfig if focal else transformers.DetrConfig)(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(),
        auxiliary_loss=True,
        decoder_layers=len(stacked[0]),
        num_labels=outputs["logits"].shape[-1] - (not focal),
    )
    labels = []
    for image, classes in enumerate(targets["labels"]):
        real = classes >= 0
        rows = {name: torch.from_numpy(targets[name][image][real]) for name in ("boxes", "masks") if name in targets}
        labels.append({"class_labels": torch.from_numpy(classes[real]).long(), **rows})
    if "pred_masks" in outputs:
        total, parts, _ = ForSegmentationLoss(
            outputs["logits"], labels, "cpu", outputs["pred_boxes"], outputs["pred_masks"], config, *stacked
        )
    else:
        loss = DeformableDetrForObjectDetectionLoss if focal else ForObjectDetectionLoss
        total, parts, _ = loss(outputs["logits"], labels, "cpu", outputs["pred_boxes"], config, *stacked)
    return {"loss": total, **parts}
