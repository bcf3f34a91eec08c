"""The configuration: presets have the published sizes, JSON does not change it, and each mistake has its message."""

import dataclasses
import json

import pytest

from tfdetr_keras import ResNetConfig
from tfdetr_keras.models import (
    DABDETR,
    DETR,
    PRESETS,
    ConditionalDETR,
    ConditionalDETRConfig,
    DeformableDETR,
    DETRConfig,
    DETRForSegmentation,
    SegmentationConfig,
    TableTransformer,
    from_preset,
)
from tfdetr_keras.models.presets import PUBLISHED
from tfdetr_keras.models.registry import config_of, describe, recast

RELATIVES = {
    # class, backbone, queries, classes, eos coefficient
    "detr-resnet-50-panoptic": (DETRForSegmentation, "detr-resnet-50", 100, 250, 0.1),
    "detr-resnet-50-dc5-panoptic": (DETRForSegmentation, "detr-resnet-50-dc5", 100, 250, 0.1),
    "detr-resnet-101-panoptic": (DETRForSegmentation, "detr-resnet-101", 100, 250, 0.1),
    "table-transformer-detection": (TableTransformer, "detr-resnet-18", 15, 2, 0.4),
    "table-transformer-structure-recognition": (TableTransformer, "detr-resnet-18", 125, 6, 0.4),
    "conditional-detr-resnet-50": (ConditionalDETR, "detr-resnet-50", 300, 91, None),
    "dab-detr-resnet-50": (DABDETR, "detr-resnet-50", 300, 91, None),
    "dab-detr-resnet-50-pat3": (DABDETR, "detr-resnet-50", 300, 91, None),
    "dab-detr-resnet-50-dc5": (DABDETR, "detr-resnet-50-dc5", 300, 91, None),
    "dab-detr-resnet-50-dc5-fixxy": (DABDETR, "detr-resnet-50-dc5", 300, 91, None),
    "dab-detr-resnet-50-dc5-pat3": (DABDETR, "detr-resnet-50-dc5", 300, 91, None),
    "deformable-detr-single-scale": (DeformableDETR, "detr-resnet-50", 300, 91, None),
    "deformable-detr-single-scale-dc5": (DeformableDETR, "detr-resnet-50-dc5", 300, 91, None),
    "deformable-detr": (DeformableDETR, "detr-resnet-50", 300, 91, None),
    "deformable-detr-with-box-refine": (DeformableDETR, "detr-resnet-50", 300, 91, None),
    "deformable-detr-with-box-refine-two-stage": (DeformableDETR, "detr-resnet-50", 300, 91, None),
}

SMALL = {"num_classes": 2, "d_model": 16, "encoder_attention_heads": 4, "decoder_attention_heads": 2}


def test_defaults_are_the_papers():
    config = DETRConfig()
    assert config.backbone == ResNetConfig("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), 64)
    assert (config.num_classes, config.num_queries, config.d_model) == (91, 100, 256)
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (8, 8)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (2048, 2048)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.1, 0.1)
    assert (config.activation_function, config.pre_norm, config.position_embedding) == ("relu", False, "sine")
    assert config.auxiliary_outputs


D_FINES = ("nano", "small", "medium", "large", "xlarge")


def test_presets_are_the_papers_four_backbones_with_and_without_dilation_a_tiny_one_and_the_relatives():
    names = [f"detr-resnet-{depth}{suffix}" for depth in (18, 34, 50, 101) for suffix in ("", "-dc5")]
    assert set(PRESETS) - {*names, "detr-tiny", "deformable-detr-tiny"} == {
        *RELATIVES,
        *(f"rt-detr-{version}{size}" for version in ("", "v2-") for size in ("r18", "r34", "r50-m", "r50", "r101")),
        *("rt-detr-tiny", "d-fine-tiny"),
        *(f"rt-detr-v2-hgnet-v2-{size}" for size in "lxh"),
        *(f"d-fine-{size}{data}" for size in D_FINES for data in ("", "-obj365", "-obj2coco")),
        *(f"lw-detr-{size}" for size in ("tiny", "small", "medium", "large", "xlarge")),
        *(f"rf-detr-{size}" for size in ("nano", "small", "medium", "large", "base", "tiny")),
        *(f"rf-detr-seg-{size}" for size in ("nano", "small", "medium", "large", "xlarge", "2xlarge", "tiny")),
    }
    for name in names:
        assert PRESETS[name].backbone.dilation == name.endswith("-dc5")
        assert dataclasses.replace(PRESETS[name], backbone=ResNetConfig()) == DETRConfig()
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    for depth, depths in blocks.items():
        assert PRESETS[f"detr-resnet-{depth}"].backbone.depths == depths


@pytest.mark.parametrize("name", RELATIVES)
def test_presets_of_the_relatives(name):
    """The figures of the papers' models, in a thin copy: the backbone is compared by its configuration."""
    kind, backbone, queries, classes, eos_coefficient = RELATIVES[name]
    assert PRESETS[name].backbone == PRESETS[backbone].backbone
    thin = ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 16, 16), 8)
    model = from_preset(name, backbone=thin, encoder_layers=1, decoder_layers=1)
    assert type(model) is kind
    assert (model.config.num_queries, model.config.num_classes) == (queries, classes)
    assert model.config.pre_norm == name.startswith("table")
    assert eos_coefficient is None or model.criterion.eos_coefficient == eos_coefficient
    assert model.criterion.classification == model.config.classification


def test_every_published_checkpoint_has_a_preset():
    assert set(PUBLISHED.values()) <= set(PRESETS)
    assert len(PUBLISHED) == 57


def test_a_preset_of_another_class_is_refused():
    with pytest.raises(ValueError, match=r"'conditional-detr-resnet-50' is a ConditionalDETR, not a DETR"):
        DETR.from_preset("conditional-detr-resnet-50")


def test_a_configuration_of_another_class_is_refused():
    with pytest.raises(ValueError, match="DETR is made from a DETRConfig, not a SegmentationConfig"):
        DETR(SegmentationConfig(**SMALL | {"encoder_attention_heads": 8}))


def test_a_detectors_configuration_becomes_a_segmentations_and_back():
    config = DETRConfig(**SMALL | {"encoder_attention_heads": 8, "frozen": "stem"})
    there = recast(config, DETRForSegmentation)
    assert type(there) is SegmentationConfig
    assert recast(dataclasses.replace(there, frozen=["stem", "mask_head"]), DETR) == config
    with pytest.raises(ValueError, match=r"this is a ConditionalDETR, not a DETR: load it with td\.ConditionalDETR"):
        recast(ConditionalDETRConfig(**SMALL), DETR)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SegmentationConfig, {}, r"d_model=16 and encoder_attention_heads=4 must add up to a multiple of 8"),
        (SegmentationConfig, {"d_model": 200, "encoder_attention_heads": 8}, r"\(100, 50, 25, 12\); each must be"),
        (
            SegmentationConfig,
            {"encoder_attention_heads": 8, "backbone": ResNetConfig("basic", (1,), (8,), 8)},
            "needs at least two stages",
        ),
    ],
)
def test_mistakes_of_the_relatives(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | fields)


def resnet_parameters(config):
    """Convolutions, and batch-norm vectors: counted from the architecture on paper."""
    kernels, channels, before = 7 * 7 * 3 * config.stem_channels, config.stem_channels, config.stem_channels
    for stage, (depth, width) in enumerate(zip(config.depths, config.channels, strict=True)):
        for block in range(depth):
            if config.block == "basic":
                shapes = [(9, before, width), (9, width, width)]
            else:
                shapes = [(1, before, width // 4), (9, width // 4, width // 4), (1, width // 4, width)]
            if block == 0 and (stage > 0 or before != width):
                shapes.append((1, before, width))
            kernels += sum(area * inputs * outputs for area, inputs, outputs in shapes)
            channels += sum(outputs for _, _, outputs in shapes)
            before = width
    return kernels, 4 * channels


@pytest.mark.parametrize("name", ["detr-resnet-18", "detr-resnet-50", "detr-tiny"])
def test_parameter_counts(name):
    config = PRESETS[name]
    model = DETR(config)
    kernels, vectors = resnet_parameters(config.backbone)
    assert sum(weight.shape.num_elements() for weight in model.backbone.weights) == kernels + vectors
    if name == "detr-resnet-50":  # what Hugging Face's model counts: parameters, and buffers of its frozen batch norm
        assert (kernels, vectors) == (23_454_912, 106_240)
        assert model.count_params() == 41_524_768 + 106_240


def test_json_does_not_change_a_configuration():
    for config in (*PRESETS.values(), DETRConfig(num_classes=2, id2label={1: "dog", 0: "cat"})):
        assert type(config)(**json.loads(json.dumps(config.to_dict()))) == config
        assert config_of(json.loads(json.dumps(describe(config)))) == config


def test_classes_are_named_even_if_nobody_did():
    assert DETRConfig(num_classes=2).id2label == {0: "class_0", 1: "class_1"}
    assert list(DETRConfig(num_classes=2, id2label={"1": "dog", "0": "cat"}).id2label.items()) == [
        (0, "cat"),
        (1, "dog"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "wide"}, "block='wide' must be one of 'basic', 'bottleneck'"),
        ({"batch_norm": "thawed"}, "batch_norm='thawed' must be one of 'frozen', 'trainable'"),
        ({"depths": (1, 2)}, r"depths \(1, 2\) and channels \(256, 512, 1024, 2048\) must name the same stages"),
        ({"depths": (), "channels": ()}, "must name the same stages"),
    ],
)
def test_mistakes_in_the_backbone(fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding": "rotary"}, "position_embedding='rotary' must be one of 'sine', 'learned'"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"num_queries": 0}, "num_queries must be at least 1, not 0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, not 0"),
        ({"decoder_layers": -1}, "decoder_layers must be at least 1, not -1"),
        ({"d_model": 18}, "d_model=18 must be divisible by 4"),
        ({"encoder_attention_heads": 3}, "d_model=16 is not divisible by encoder_attention_heads=3"),
        ({"decoder_attention_heads": 5}, "d_model=16 is not divisible by decoder_attention_heads=5"),
        ({"id2label": {0: "cat"}}, r"id2label must name each of the ids 0 … 1 \(num_classes=2\), but it names \[0\]"),
        ({"frozen": "stem+stage9"}, "frozen: 'stage9' is no part of this model; there are backbone, stem, stage1, "),
        ({"frozen": ["trunk"]}, "frozen: 'trunk' is no part of this model"),
        ({"id2label": {1: "cat", 2: "dog"}}, r"but it names \[1, 2\]"),
        ({"id2label": {index: "?" for index in range(90)}}, r"but it names \[0, 1, 2, 3\] … \[88, 89\] \(90 ids\)"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(ValueError, match=message):
        DETRConfig(**{**SMALL, **fields})
