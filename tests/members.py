"""The members of the family as the tests know them: one entry each, by which every test of the common kinds is run.

An entry says what a member is, small, and what it is compared with. To add a member, add an entry: no new test is
needed for the stages, loss and gradients, names in both directions, files, `detect`, `fit`, other backends and exports.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import authors_names
import numpy as np
import pytest
from batches import padded_batch, random_targets
from reference.descriptions import Facebook, HuggingFace

import tfdetr_keras as td
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig
from tfdetr_keras.losses.mask_criterion import PointMaskCriterion
from tfdetr_keras.models.config import DetectorConfig

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a member may be from its reference; what was measured on a CPU stands in the tests that use them.

    Args:
        logits: largest |Δ| of logits, of the last layer and of the others.
        boxes: of boxes.
        masks: of mask logits.
        stage: of every other stage, as a part of the stage's largest value.
        loss: relative, of each loss.
        gradient: of a weight's gradient, as a part of its norm.
        in_double: whether the gradients are computed in float64 on both sides: in deep networks rounding decides
            whether a rectified value next to zero lets the gradient by.
    """

    logits: float = 1e-4
    boxes: float = 1e-5
    masks: float = 1.5e-4
    stage: float = 3e-5
    loss: float = 5e-6
    gradient: float = 5e-4
    in_double: bool = False

    def of_stage(self, name):
        """Return the limit of one stage by its name."""
        kinds = {"mask": 0.0, "logits": self.logits, "aux_logits": self.logits, "pred_masks": self.masks}
        kinds |= {"proposals.logits": self.logits, "proposals.boxes": self.boxes}
        return {**kinds, "pred_boxes": self.boxes, "aux_boxes": self.boxes}.get(name, self.stage)


DOUBLE = {"gradient": 5e-6, "in_double": True}


@dataclasses.dataclass(frozen=True)
class Size:
    """The images of a batch, (height, width) each, and whether a mask says what of the canvas is padding."""

    images: tuple[tuple[int, int], ...]
    has_mask: bool = True

    def __str__(self):
        sizes = "+".join(f"{height}x{width}" for height, width in self.images)
        return sizes if self.has_mask else f"{sizes} without a mask"

    def batch(self):
        """Return inputs of the model: random images."""
        batch = padded_batch(*self.images)
        return batch if self.has_mask else {"pixel_values": batch["pixel_values"]}


PADDED, ODD = Size(((128, 160), (97, 110))), Size(((33, 65),), has_mask=False)
# For members that take no padding, and sides of whole tokens alone; not square, they tell height from width.
WHOLE, WIDE = Size(((96, 96), (96, 96)), has_mask=False), Size(((64, 128),), has_mask=False)


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture beside its reference.

    Args:
        name: of the case, unlike any other's.
        canvas: height and width of the images in training, where there is no padding.
        reference: the PyTorch model.
        sizes: the batches whose stages are compared.
        limits: how far the two may be apart.
        loss: of the reference: a key of `reference.losses.LOSSES`.
        loss_there: fields of the criterion in which the reference's loss is another one than its configuration says.
        without_effect: what matches the paths of weights that cannot change the outputs, so that their gradients are
            rounding errors on both sides.
        has_masks: whether masks are predicted, and are among the targets.
        has_gradients: whether loss and gradients are compared, too.
        is_slow: whether its tests are among the slow ones.
    """

    name: str
    reference: HuggingFace | Facebook
    sizes: tuple[Size, ...] = (PADDED, ODD)
    limits: Limits = Limits()
    loss: str = "softmax"
    loss_there: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    without_effect: str = ""
    has_masks: bool = False
    has_gradients: bool = True
    is_slow: bool = False
    canvas: tuple[int, int] = (96, 128)

    def has_effect(self, path):
        """Whether a weight can change the outputs at all."""
        return not re.fullmatch(self.without_effect, path)

    @property
    def knows_padding(self):
        """Whether images of several sizes may be in one batch."""
        return any(size.has_mask for size in self.sizes)

    def two_images(self):
        """Return inputs of two images, the second of which is padded where there may be padding."""
        return PADDED.batch() if self.knows_padding else Size(((128, 160),) * 2, has_mask=False).batch()

    def training_batch(self):
        """Return three images and targets: a few objects, none, and more than there are queries."""
        fields = self.reference.fields
        if self.knows_padding:
            batch = padded_batch((128, 160), (97, 110), (64, 64))
        else:
            batch = Size((self.canvas,) * 3, has_mask=False).batch()
        canvas = batch["pixel_mask"].shape[1:] if self.has_masks else None
        queries, classes = fields.get("num_queries", 100), fields.get("num_labels") or len(fields["id2label"])
        targets = random_targets((5, 0, queries + 3), classes, rows=max(25, queries + 3), canvas=canvas)
        return batch, targets

    def another(self, name, **changes):
        """Return a variant: other fields of the reference, or of the case."""
        reference = changes.pop("reference", self.reference)
        fields = {field: changes.pop(field) for field in list(changes) if not hasattr(self, field)}
        reference = dataclasses.replace(reference, fields={**reference.fields, **fields})
        return dataclasses.replace(self, name=f"{self.name}-{name}", reference=reference, **changes)


@dataclasses.dataclass(frozen=True)
class Member:
    """One class of the family.

    Args:
        case: its tiny model and what that is compared with.
        config: the configuration that the tiny model has in Keras.
        criterion: its loss in Keras, with coefficients that are nobody's default.
        namings: other names of the same weights, by what to call them: functions of what `save_pretrained` writes.
        options: of `load_model`, for tensors without a configuration.
        of_pth: fields of the configuration that differ in a model that a `.pth` of the authors can hold.
        of_32_pixels: those that differ in a model for images of that side.
        of_backends: those that differ in a model for other backends, where compiling takes long.
        variants: other architectures of the class that are compared, too.
    """

    case: Case
    config: DetectorConfig
    criterion: td.SetCriterion
    namings: Mapping[str, Callable[[State], State]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_pth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_32_pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_backends: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: tuple[Case, ...] = ()

    @property
    def name(self):
        """The name of the class."""
        return self.case.name

    @property
    def kind(self):
        """The class."""
        return td.models.model_class(self.config)

    def new(self, dtype=None, **changes):
        """Return a model with random weights, and other values of fields of its configuration."""
        return self.kind(dataclasses.replace(self.config, **changes), self.criterion, dtype=dtype)


# ---- what the entries are made of ----

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
RESNETS = {
    "resnet-18": {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": BASIC, "embedding_size": 64},
    "resnet-34": {"layer_type": "basic", "depths": (3, 4, 6, 3), "hidden_sizes": BASIC, "embedding_size": 64},
    "resnet-50": {"layer_type": "bottleneck", "depths": (3, 4, 6, 3), "hidden_sizes": BOTTLENECK, "embedding_size": 64},
    "resnet-101": {
        "layer_type": "bottleneck",
        "depths": (3, 4, 23, 3),
        "hidden_sizes": BOTTLENECK,
        "embedding_size": 64,
    },
    "thin": {"layer_type": "basic", "depths": (1, 2, 1, 1), "hidden_sizes": (16, 24, 32, 48), "embedding_size": 16},
    "thin-bottleneck": {
        "layer_type": "bottleneck",
        "depths": (1, 1, 2, 1),
        "hidden_sizes": (32, 48, 64, 96),
        "embedding_size": 16,
    },
}
NAMES = {0: "cat", 1: "dog", 2: "N/A", 3: "sky", 4: "tree", 5: "road"}
# Halves unlike, so that the two cannot be mixed up unnoticed.
TRANSFORMER = {
    "num_queries": 15,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 48,
}
UNEQUAL = {
    "d_model": 48,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 72,
    "num_queries": 7,
}
SMALL = {
    "dropout": 0.0,
    "id2label": NAMES,
    "label2id": {name: index for index, name in NAMES.items()},
    **TRANSFORMER,
}
# DAB-DETR's configuration calls the width so.
SMALL_DAB, UNEQUAL_DAB = (
    {"hidden_size" if name == "d_model" else name: value for name, value in fields.items()}
    for fields in (SMALL, UNEQUAL)
)
# A mask head wants d_model and heads to add up to a multiple of 8.
EIGHT_HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
LARGE = {"dropout": 0.0, "num_labels": 91}
# The same in the words of `FacebookDetr`.
FACEBOOK = {
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

# RT-DETR calls some of these otherwise, and knows of more; the encoder is not as wide as the decoder.
RT_FIELDS = {
    **{name: value for name, value in SMALL.items() if name not in ("encoder_layers",)},
    "encoder_hidden_dim": 48,
    "hidden_expansion": 0.5,
    "num_denoising": 10,
    "matcher_class_cost": 3.0,
    "weight_loss_vfl": 2.0,
    "focal_loss_alpha": 0.6,
    "freeze_backbone_batch_norms": False,
}

# D-FINE over HGNetV2, whose encoder is as wide as the decoder unless it says otherwise.
HGNET = {
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 8, 12, 12],
    "stage_out_channels": [16, 24, 32, 48],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "embedding_size": 12,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 2, 1],
    "use_learnable_affine_block": True,
}
D_FINE_FIELDS = {
    **{name: value for name, value in RT_FIELDS.items() if name not in ("weight_loss_vfl", "focal_loss_alpha")},
    "decoder_n_points": [3, 6, 3],
    "depth_mult": 0.34,
}

# A key's bias adds the same to all scores of a query; the first decoder layer's queries are all alike, so that it
# attends among equals. Those are zeros, or what a normalisation makes of zeros, its offset.
EQUALS = r"(en|de)coder/.*/key(_position)?/bias|decoder/layer0/self_attention/(query|key)(_position)?/(kernel|bias)"
ZEROS = f"{EQUALS}|decoder/layer0/self_attention/value/kernel"
NORMALIZED_ZEROS = f"{EQUALS}|decoder/layer0/self_attention_norm/gamma"
# Where a group of channels is one, its normalisation takes the bias before it away.
GROUPS_OF_ONE = r"mask_head/conv[345]/convolution/bias"

# LW-DETR and RF-DETR: over backbones whose windows and taps are those of a published width, depth or patch.
GROUP_FIELDS = {
    **{name: value for name, value in SMALL.items() if "encoder" not in name and "attention_heads" not in name},
    "d_model": 64,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 3,
    "group_detr": 3,
    "class_cost": 3,
    "class_loss_coefficient": 2,
    "focal_alpha": 0.3,
}
LW_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "patch_size": 8,
    "image_size": 128,
    "pretrain_image_size": 40,
    "window_block_indices": [0, 2, 4],
    "out_indices": [2, 4, 6],
}
DINOV2 = {
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "patch_size": 16,
    "num_windows": 2,
    "image_size": 80,
    "out_indices": [3, 6, 9, 12],
}
GROUPS_IN_KERAS = {
    "num_queries": 15,
    "num_classes": len(NAMES),
    "id2label": NAMES,
    "d_model": 64,
    "decoder_layers": 3,
    "self_attention_heads": 2,
    "cross_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "decoder_points": 3,
    "groups": 3,
}
SMALLER = {"num_queries": 6, "decoder_layers": 1, "groups": 2, "projector_blocks": 1}
# In evaluation nothing trains what proposes, nor the other groups; and a key's bias adds the same to all scores.
WITHOUT_EFFECT = r".*/key/bias|proposals/.*|encoder_(class|box)_head/.*"

# What `load_model` makes of it.
IN_KERAS = {
    "backbone": td.ResNetConfig("basic", (1, 2, 1, 1), (16, 24, 32, 48), 16),
    "frozen": ("stem", "stage1"),
    **TRANSFORMER,
    "num_classes": len(NAMES),
    "id2label": NAMES,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}

RT_IN_KERAS = {
    **{name: value for name, value in IN_KERAS.items() if name not in ("encoder_layers", "frozen")},
    "backbone": td.ResNetConfig("basic", (1, 2, 1, 1), (16, 24, 32, 48), 16, variant="vd", batch_norm="trainable"),
    "encoder_dim": 48,
    "expansion": 0.5,
    "num_denoising": 10,
}
D_FINE_IN_KERAS = {
    **RT_IN_KERAS,
    "backbone": td.HGNetV2Config((8, 12), (8, 8, 12, 12), (16, 24, 32, 48), (1, 1, 2, 1), 2, True, "trainable"),
    "fusion_blocks": 1,
}
DEFORMABLE_FIELDS = {**SMALL, "d_model": 64, "encoder_n_points": 3, "decoder_n_points": 2}


def hugging_face(family, backbone="thin", task="ObjectDetection", seed=0, **fields):
    """Return a detector of transformers over one of `RESNETS`."""
    return HuggingFace(f"{family}For{task}", RESNETS[backbone], fields, seed=seed)


def over(case, backbone, name=None, **fields):
    """Return a slow case over a published backbone, with a transformer of the published size."""
    reference = HuggingFace(case.reference.architecture, RESNETS[backbone], {**LARGE, **fields})
    sizes = case.sizes[:1]
    return dataclasses.replace(
        case,
        name=f"{case.name}-{name or backbone}",
        reference=reference,
        sizes=sizes,
        has_gradients=False,
        is_slow=True,
    )


def gradients_over(case, backbone):
    """Return a slow case for gradients: a smooth activation keeps millions of hidden values out of rounding's way."""
    wide = over(case, backbone, f"{backbone}-gelu", activation_function="gelu", num_queries=20)
    return dataclasses.replace(wide, sizes=(), has_gradients=True, limits=Limits(**DOUBLE))


def facebook(case, name, **fields):
    """Return a case whose reference is the plain DETR, in which the loss is DETR's own."""
    reference = Facebook({**FACEBOOK, **fields})
    return dataclasses.replace(
        case, name=f"{case.name}-{name}", reference=reference, sizes=(PADDED,), loss_there={"eos_coefficient": 0.1}
    )


# ---- the entries ----

DETR = Case(
    "DETR",
    hugging_face("Detr", **SMALL, eos_coefficient=0.3, class_cost=2),
    sizes=(
        *(PADDED, ODD, Size(((97, 131),)), Size(((33, 64),)), Size(((97, 131), (130, 65), (64, 64)))),
        Size(((97, 131), (97, 131)), has_mask=False),
    ),
    without_effect=ZEROS,
)
TABLE_TRANSFORMER = Case(
    "TableTransformer",
    hugging_face("TableTransformer", **SMALL, eos_coefficient=0.2, bbox_loss_coefficient=4),
    without_effect=NORMALIZED_ZEROS,
)
SEGMENTATION = Case(
    "DETRForSegmentation",
    hugging_face(
        "Detr",
        task="Segmentation",
        **SMALL | EIGHT_HEADS,
        mask_loss_coefficient=3,
        dice_loss_coefficient=4,
        eos_coefficient=0.3,
    ),
    limits=Limits(**DOUBLE),
    loss="masks",
    without_effect=f"{ZEROS}|{GROUPS_OF_ONE}",
    has_masks=True,
)
CONDITIONAL = Case(
    "ConditionalDETR",
    # Of seed 0 PyTorch's own boxes in float32 are 1.2e-5 off those in float64, of this one 1.8e-6.
    hugging_face("ConditionalDetr", **SMALL, class_cost=3, cls_loss_coefficient=4, focal_alpha=0.5, seed=1),
    loss="focal",
    # transformers reads the weight of the class loss and does not use it.
    loss_there={"class_loss_coefficient": 1.0},
    without_effect=ZEROS,
)
DAB = Case(
    "DABDETR",
    hugging_face("DabDetr", **SMALL_DAB, class_cost=3, focal_alpha=0.5, seed=1),
    # Measured with this seed: logits 8e-6, with patterns 1.1e-5; boxes 1.2e-6, stages 4e-6, gradients 9e-5. With
    # others five times as much.
    limits=Limits(logits=3e-5, boxes=4e-6, stage=1e-5, gradient=3e-4),
    loss="focal",
    without_effect=ZEROS,
)

DEFORMABLE = Case(
    "DeformableDETR",
    hugging_face("DeformableDetr", **DEFORMABLE_FIELDS, with_box_refine=True, class_cost=3, focal_alpha=0.5, seed=3),
    limits=Limits(logits=2e-5, boxes=5e-6, stage=1e-5, gradient=1e-4),
    loss="focal",
    loss_there={"class_loss_coefficient": 1.0},
    # What proposes is not trained by transformers; ours is compared with the authors', see test_deformable_detr.
    without_effect=r"decoder/.*/key/bias|proposals/(projection|norm)/.*|encoder_(class|box)_head/.*",
)

# With other seeds PyTorch's own logits in float32 are up to 3e-5 off those in float64.
TWO_STAGE = DEFORMABLE.another(
    "two-stage",
    reference=dataclasses.replace(DEFORMABLE.reference, seed=2),
    two_stage=True,
    two_stage_num_proposals=15,
)

RT_DETR = Case(
    "RTDETR",
    hugging_face("RTDetr", **RT_FIELDS),
    sizes=(WHOLE, WIDE),
    loss="varifocal",
    # In evaluation nothing trains what proposes, nor what denoising starts from.
    without_effect=r"(en|de)coder/.*/key/bias|proposals/.*|encoder_(class|box)_head/.*|denoising_embedding/.*",
    # transformers has other gradients than the authors: they are compared in test_rt_detr_reference.
    has_gradients=False,
)
RT_DETR_V2 = dataclasses.replace(
    RT_DETR,
    name="RTDETRV2",
    reference=hugging_face("RTDetrV2", **RT_FIELDS, decoder_n_points=3, decoder_offset_scale=0.4),
)
D_FINE = Case(
    "DFINE",
    HuggingFace("DFineForObjectDetection", HGNET, D_FINE_FIELDS),
    sizes=(WHOLE, WIDE, Size(((96, 128),), has_mask=False)),
    limits=Limits(logits=1e-5, boxes=1e-5, stage=1e-5),
    loss="varifocal",
    without_effect=RT_DETR.without_effect,
    # transformers' loss is not the authors'.
    has_gradients=False,
)
# Measured: logits 8e-6, boxes 3.2e-6, stages 2.4e-6, losses 5e-7, gradients 4.7e-6.
OF_GROUPS = Limits(logits=3e-5, boxes=1e-5, stage=1e-5, loss=2e-6, gradient=3e-5)
LW_DETR = Case(
    "LWDETR",
    # transformers never chooses padding, which the authors may: of this seed, and few others, neither does.
    HuggingFace("LwDetrForObjectDetection", LW_VIT, {**GROUP_FIELDS, "projector_scale_factors": [1.0]}, seed=5),
    sizes=(PADDED, WIDE),
    limits=OF_GROUPS,
    loss="iou_aware",
    without_effect=WITHOUT_EFFECT,
)
RF_DETR = Case(
    "RFDETR",
    # transformers' default of layer_norm_eps, 1e-5, is not the authors'.
    HuggingFace("RfDetrForObjectDetection", DINOV2, {**GROUP_FIELDS, "layer_norm_eps": 1e-6}),
    # transformers mixes up height and width in windows, so that squares are compared.
    sizes=(WHOLE, Size(((128, 128),), has_mask=False)),
    limits=OF_GROUPS,
    loss="iou_aware",
    without_effect=WITHOUT_EFFECT,
    canvas=(96, 96),
)
RF_SEGMENTATION = dataclasses.replace(
    RF_DETR,
    name="RFDETRForSegmentation",
    reference=HuggingFace(
        "RfDetrForInstanceSegmentation",
        DINOV2,
        {
            **GROUP_FIELDS,
            "layer_norm_eps": 1e-6,
            "intermediate_size": 4 * GROUP_FIELDS["d_model"],
            "mask_class_loss_coefficient": 3,
            "mask_dice_loss_coefficient": 4,
            "mask_point_sample_ratio": 8,
        },
    ),
    limits=dataclasses.replace(OF_GROUPS, masks=1e-3),  # measured: masks 2.0e-4
    # Its losses of masks are at random points, and transformers' are wrong: they are compared with the authors'.
    has_masks=True,
    has_gradients=False,
)


def published(case, backbone, side, **fields):
    """Return a slow case of a published size of a vision transformer, its decoder and its images.

    Measured on a CPU: logits differ by at most 5.2e-5, boxes by 3.6e-6, a stage by 7.6e-6 of its largest value. Of seed
    0 two scores of RF-DETR's proposals are 1.2e-6 apart, which rounding puts in either order.
    """
    sizes = {"num_labels": 91, "num_queries": 300, "group_detr": 13, "d_model": 256, "decoder_ffn_dim": 2048}
    heads = {"decoder_self_attention_heads": 8, "decoder_cross_attention_heads": 16, "decoder_n_points": 2}
    own = {name: value for name, value in case.reference.fields.items() if name not in ("id2label", "label2id")}
    fields = {**own, **sizes, **heads, **fields}
    reference = dataclasses.replace(case.reference, backbone=backbone, fields=fields, seed=1)
    return dataclasses.replace(
        case,
        name=f"{case.name}-published",
        reference=reference,
        sizes=(Size(((side, side),), has_mask=False),),
        limits=Limits(),
        has_gradients=False,
        is_slow=True,
    )


# Of D-FINE's published sizes.
HGNET_B0 = {
    **HGNET,
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "embedding_size": 16,
    "hidden_sizes": [64, 256, 512, 1024],
}
D_FINE_NANO = {
    "num_labels": 80,
    "d_model": 128,
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "encode_proj_layers": [1],
    "hidden_expansion": 0.34,
    "depth_mult": 0.5,
    "num_feature_levels": 2,
    "decoder_layers": 3,
    "decoder_ffn_dim": 512,
    "decoder_n_points": [6, 6],
}
D_FINE_SMALL = {
    "num_labels": 80,
    "hidden_expansion": 0.5,
    "depth_mult": 0.34,
    "decoder_layers": 3,
    "decoder_n_points": [3, 6, 3],
}


def published_d_fine(name, seed, **fields):
    """Return a slow case of a published size of D-FINE over its HGNetV2-B0, and of its images.

    Measured on a CPU: logits differ by at most 7.0e-6, boxes by 6.0e-7, a stage by 3.0e-6 of its largest value. Random
    weights give the best of 8,400 proposals nearly the same score, which rounding puts in either order: of these seeds
    the best 50 are at least 4.8e-6 apart.
    """
    return dataclasses.replace(
        D_FINE,
        name=f"{D_FINE.name}-{name}",
        reference=HuggingFace("DFineForObjectDetection", HGNET_B0, {"num_queries": 50, **fields}, seed=seed),
        sizes=(Size(((640, 640),), has_mask=False),),
        limits=Limits(logits=5e-5, boxes=5e-6),
        is_slow=True,
    )


NANO = {**DINOV2, "hidden_size": 384, "num_attention_heads": 6, "image_size": 384}
LW_TINY = {**LW_VIT, "patch_size": 16, "image_size": 640, "pretrain_image_size": 224}
# The larger ones' blocks, as wide an encoder as the decoder, and fusion blocks that need no last convolution.
RT_LARGE = {"encoder_hidden_dim": 32, "hidden_expansion": 1.0, "encode_proj_layers": [1, 2], "num_queries": 30}
RT_LARGE |= {"freeze_backbone_batch_norms": True}

MEMBERS = {
    member.name: member
    for member in (
        Member(
            DETR,
            td.DETRConfig(**IN_KERAS),
            td.SetCriterion(eos_coefficient=0.3, cost_class=2),
            {"with timm": authors_names.with_timm, "facebookresearch's": authors_names.facebookresearch},
            {"heads": 4},
            {"decoder_ffn_dim": 64},
            variants=(
                DETR.another("learned-positions", position_embedding_type="learned", sizes=(PADDED,)),
                DETR.another("unequal-halves", **UNEQUAL, sizes=(PADDED,), has_gradients=False),
                facebook(DETR, "facebook-basic", **FACEBOOK_BASIC),
                facebook(DETR, "facebook-dc5-basic", **FACEBOOK_BASIC, dilated=True),
                facebook(DETR, "facebook-dc5-bottleneck", **FACEBOOK_BOTTLENECK, dilated=True),
                *(over(DETR, backbone) for backbone in ("resnet-18", "resnet-34", "resnet-50", "resnet-101")),
                *(gradients_over(DETR, backbone) for backbone in ("resnet-18", "resnet-50", "resnet-101")),
            ),
        ),
        Member(
            TABLE_TRANSFORMER,
            td.TableTransformerConfig(**IN_KERAS),
            td.SetCriterion(eos_coefficient=0.2, bbox_loss_coefficient=4),
            {"with timm": authors_names.with_timm, "Microsoft's": authors_names.facebookresearch},
            {"heads": 4},
            {"decoder_ffn_dim": 64},
            variants=(
                facebook(TABLE_TRANSFORMER, "facebook-pre-norm", **FACEBOOK_BOTTLENECK, pre_norm=True),
                over(TABLE_TRANSFORMER, "resnet-18", num_labels=6, num_queries=125),
            ),
        ),
        Member(
            SEGMENTATION,
            td.SegmentationConfig(**IN_KERAS | EIGHT_HEADS),
            td.SetCriterion(mask_loss_coefficient=3, dice_loss_coefficient=4, eos_coefficient=0.3),
            {
                "with timm": authors_names.with_timm,
                "facebookresearch's": functools.partial(authors_names.facebookresearch, prefix="detr."),
            },
            {"heads": 8},
            {"decoder_ffn_dim": 64},
            variants=tuple(
                over(SEGMENTATION, backbone, num_labels=250, num_queries=20) for backbone in ("resnet-50", "resnet-101")
            ),
        ),
        Member(
            CONDITIONAL,
            td.ConditionalDETRConfig(**IN_KERAS),
            td.SetCriterion(classification="focal", cost_class=3, class_loss_coefficient=4, focal_alpha=0.5),
            {
                "with timm": authors_names.with_timm,
                "Atten4Vis'": functools.partial(authors_names.facebookresearch, cross_attention="cross_attn"),
            },
            {"heads": 4},
            {"decoder_ffn_dim": 64},
            variants=(
                CONDITIONAL.another(
                    "learned-positions",
                    **UNEQUAL,
                    position_embedding_type="learned",
                    sizes=(PADDED,),
                    has_gradients=False,
                ),
                over(CONDITIONAL, "resnet-50"),
            ),
        ),
        Member(
            DEFORMABLE,
            td.DeformableDETRConfig(
                **IN_KERAS | {"d_model": 64}, encoder_points=3, decoder_points=2, with_box_refine=True
            ),
            td.SetCriterion(classification="focal", cost_class=3, class_loss_coefficient=2, focal_alpha=0.5),
            {
                "with timm": authors_names.with_timm,
                "fundamentalvision's": authors_names.fundamentalvision,
                "all of transformers'": authors_names.with_copies,
            },
            {"heads": 4},
            {"decoder_ffn_dim": 64},
            variants=(
                DEFORMABLE.another("single-scale", with_box_refine=False, num_feature_levels=1, sizes=(PADDED,)),
                DEFORMABLE.another("shared-heads", with_box_refine=False, sizes=(PADDED,)),
                DEFORMABLE.another("five-levels", num_feature_levels=5, sizes=(PADDED,)),
                DEFORMABLE.another("learned-positions", position_embedding_type="learned", has_gradients=False),
                TWO_STAGE,
                TWO_STAGE.another(
                    "more-than-inside",
                    two_stage_num_proposals=200,
                    sizes=(PADDED,),
                    has_gradients=False,
                    limits=Limits(),
                ),
                over(dataclasses.replace(DEFORMABLE, limits=Limits()), "resnet-50"),
                over(
                    dataclasses.replace(DEFORMABLE, limits=Limits()),
                    "resnet-50",
                    "resnet-50-two-stage",
                    with_box_refine=True,
                    two_stage=True,
                ),
            ),
        ),
        Member(
            DAB,
            td.DABDETRConfig(**IN_KERAS),
            td.SetCriterion(classification="focal", cost_class=3, class_loss_coefficient=1, focal_alpha=0.5),
            {
                "in memory": authors_names.dab_in_memory,
                "with timm": authors_names.dab_with_timm,
                "IDEA-Research's": authors_names.idea_research,
            },
            {"heads": 4},
            {"decoder_ffn_dim": 64, "num_patterns": 2},
            variants=(
                # What is in no published checkpoint, and patterns: three to an anchor, whose content is not zero.
                DAB.another(
                    "patterns",
                    **UNEQUAL_DAB,
                    num_patterns=3,
                    keep_query_pos=True,
                    normalize_before=True,
                    temperature_height=15,
                    temperature_width=30,
                    # Each pattern is at each anchor: to which pattern a query attends first, no place decides.
                    without_effect=r"(en|de)coder/.*/key(_position)?/bias|"
                    r"decoder/layer0/self_attention/key_position/kernel",
                ),
                DAB.another("relu", activation_function="relu", random_refpoints_xy=True, has_gradients=False),
                over(DAB, "resnet-50"),
            ),
        ),
        Member(
            RT_DETR,
            td.RTDETRConfig(**RT_IN_KERAS),
            td.SetCriterion(classification="varifocal", cost_class=3, class_loss_coefficient=2, focal_alpha=0.6),
            {"in memory": authors_names.rt_detr_in_memory, "the first code's": authors_names.rt_detr},
            {"heads": 4},
            variants=(
                RT_DETR.another(
                    "bottleneck",
                    reference=dataclasses.replace(RT_DETR.reference, backbone=RESNETS["thin-bottleneck"]),
                    **RT_LARGE,
                    encoder_layers=2,
                    decoder_n_points=2,
                    decoder_activation_function="silu",
                ),
                over(RT_DETR, "resnet-18", num_labels=80, num_queries=100, decoder_layers=3, hidden_expansion=0.5),
            ),
        ),
        Member(
            RT_DETR_V2,
            td.RTDETRV2Config(**RT_IN_KERAS, decoder_points=3, offset_scale=0.4),
            td.SetCriterion(classification="varifocal", cost_class=3, class_loss_coefficient=2, focal_alpha=0.6),
            {"in memory": authors_names.rt_detr_in_memory, "the second code's": authors_names.rt_detr_v2},
            {"heads": 4},
            {"offset_scale": 0.5, "decoder_points": (3, 1, 2), "sampling": "discrete"},
            variants=(
                RT_DETR_V2.another(
                    "bottleneck",
                    reference=dataclasses.replace(RT_DETR_V2.reference, backbone=RESNETS["thin-bottleneck"]),
                    **RT_LARGE,
                ),
                # transformers clamps columns by the rows' number, as the authors do, so that squares are compared.
                RT_DETR_V2.another("discrete", decoder_method="discrete", sizes=(WHOLE,)),
            ),
        ),
        Member(
            D_FINE,
            td.DFINEConfig(**D_FINE_IN_KERAS),
            dataclasses.replace(td.DFINE.default_criterion(), cost_class=3.0),
            {"in memory": authors_names.d_fine_in_memory, "the authors'": authors_names.d_fine},
            {"heads": 4},
            variants=(
                D_FINE.another(
                    "plain",
                    reference=dataclasses.replace(
                        D_FINE.reference, backbone=HGNET | {"use_learnable_affine_block": False}
                    ),
                    encoder_hidden_dim=32,
                    hidden_expansion=1.0,
                    depth_mult=0.67,
                    encode_proj_layers=[1, 2],
                    reg_scale=8.0,
                    decoder_activation_function="silu",
                    freeze_backbone_batch_norms=True,
                ),
                D_FINE.another(
                    "two-levels",
                    num_feature_levels=2,
                    encode_proj_layers=[1],
                    decoder_n_points=[6, 6],
                    hidden_expansion=0.34,
                    depth_mult=0.5,
                ),
                published_d_fine("nano", seed=4, **D_FINE_NANO),
                published_d_fine("small", seed=5, **D_FINE_SMALL),
            ),
        ),
        Member(
            LW_DETR,
            td.LWDETRConfig(
                LWViTConfig(8, width=192, depth=6, windowed=(0, 2, 4), taps=(2, 4, 6), table_side=5), **GROUPS_IN_KERAS
            ),
            td.SetCriterion(classification="iou_aware", cost_class=3, class_loss_coefficient=2, focal_alpha=0.3),
            {"Atten4Vis'": authors_names.lw_detr},
            of_backends={
                **SMALLER,
                "backbone": LWViTConfig(8, width=24, depth=2, heads=2, windowed=(0,), taps=(1, 2), table_side=5),
            },
            variants=(
                LW_DETR.another("two-levels", projector_scale_factors=[2.0, 0.5]),
                published(LW_DETR, LW_TINY, 640, num_queries=100, decoder_layers=3),
            ),
        ),
        Member(
            RF_DETR,
            td.RFDETRConfig(DINOv2Config(16, width=128, heads=2, table_side=5), **GROUPS_IN_KERAS),
            td.SetCriterion(classification="iou_aware", cost_class=3, class_loss_coefficient=2, focal_alpha=0.3),
            {},
            of_32_pixels={"num_queries": 4},
            of_backends={
                **SMALLER,
                "backbone": DINOv2Config(16, width=24, depth=2, heads=2, taps=(1, 2), table_side=5),
            },
            variants=(
                RF_DETR.another(
                    "global", reference=dataclasses.replace(RF_DETR.reference, backbone=DINOV2 | {"num_windows": 1})
                ),
                published(RF_DETR, NANO, 384, decoder_layers=2),
            ),
        ),
        Member(
            RF_SEGMENTATION,
            td.RFDETRSegmentationConfig(DINOv2Config(16, width=128, heads=2, table_side=5), **GROUPS_IN_KERAS),
            PointMaskCriterion(
                classification="iou_aware",
                cost_class=3,
                class_loss_coefficient=2,
                focal_alpha=0.3,
                mask_loss_coefficient=3,
                dice_loss_coefficient=4,
                cost_mask=3,
                cost_dice=4,
                point_ratio=8,
            ),
            {},
            of_32_pixels={"num_queries": 4},
            of_backends={
                **SMALLER,
                "backbone": DINOv2Config(16, width=24, depth=2, heads=2, taps=(1, 2), table_side=5),
            },
        ),
    )
}
CASES = {case.name: case for member in MEMBERS.values() for case in (member.case, *member.variants)}


# ---- parametrising tests ----


def of_members(wanted=lambda member: True, slow=lambda member: False):
    """Parametrise a test by `member`.

    Args:
        wanted: whether a member is tested at all.
        slow: whether its test is among the slow ones.
    """
    chosen = [member for member in MEMBERS.values() if wanted(member)]
    return pytest.mark.parametrize("member", [_param(member.name, member, slow(member)) for member in chosen])


def of_cases(wanted=lambda case: True, slow=()):
    """Parametrise a test by `case`: the tiny model of every member and all its variants, some of them `slow` here."""
    chosen = [case for case in CASES.values() if wanted(case)]
    params = [_param(case.name, case, case.is_slow or case.name in slow) for case in chosen]
    return pytest.mark.parametrize("case", params)


def of_stages():
    """Parametrise a test by `case` and `place`, that of one of its sizes."""
    chosen = [(case, place) for case in CASES.values() for place in range(len(case.sizes))]
    return pytest.mark.parametrize(
        ("case", "place"),
        [_param(case.name, case, case.is_slow, place, str(case.sizes[place])) for case, place in chosen],
    )


def _param(name, value, is_slow, *more):
    values, words = (value, *more[:1]), [name, *more[1:]]
    marks = [pytest.mark.member(name=name.split("-")[0]), *([pytest.mark.slow] if is_slow else [])]
    return pytest.param(*values, id=" ".join(words), marks=marks)
