"""RT-DETR's files: where heads lie, what is kept beside weights, averages, backbones alone, and what nobody reads."""

import dataclasses
import json
import logging
import shutil

import authors_names
import numpy as np
import pytest
from members import CASES, MEMBERS
from ports import weights_of
from safetensors.numpy import load_file, save_file

import tfdetr_keras as td
from port_weights import compare as comparing
from port_weights import export, export_pth, load_model, to_torch
from port_weights.checkpoints import open_checkpoint
from port_weights.families import family_of
from port_weights.processor import processor_of, read_processor
from tfdetr_keras.models.presets import nearest_preset
from tfdetr_keras.models.rt_detr_config import PUBLISHED_IMAGES, SIZES

pytestmark = pytest.mark.member(name="RTDETR")

V1, V2 = MEMBERS["RTDETR"], MEMBERS["RTDETRV2"]
LARGE = CASES["RTDETR-bottleneck"]
DENOISING = "model.denoising_class_embed.weight"
TRUNK = "model.backbone.model."


@pytest.fixture(scope="module")
def state(answers):
    """What `save_pretrained` writes of the first version."""
    return load_file(answers(V1.case).checkpoint / "model.safetensors")


@pytest.fixture
def folder(answers, tmp_path):
    """Writes a folder of a case with other tensors and other settings in its `config.json`."""

    def written(case=V1.case, tensors=None, **changes):
        copy = shutil.copytree(answers(case).checkpoint, tmp_path / "copy", dirs_exist_ok=True)
        config = json.loads((copy / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps(config))
        if tensors is not None:
            save_file(tensors, copy / "model.safetensors")
        return copy

    return written


def moved(state, old, new):
    return {new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in state.items()}


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def assert_same(model, original):
    expected = weights_of(original)
    assert weights_of(model).keys() == expected.keys()
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


# ---- names ----


def test_heads_lie_inside_of_the_decoder_or_beside_it(state, port):
    beside = moved(moved(state, "model.decoder.class_embed", "class_embed"), "model.decoder.bbox_embed", "bbox_embed")
    mixed = moved(state, "model.decoder.class_embed", "class_embed")
    both = {**state, **{name: tensor for name, tensor in beside.items() if name not in state}}
    assert len(both) > len(state) == len(beside)
    for tensors in (beside, mixed, both):
        assert_same(load_model(tensors, heads=4), port(V1.case))
    both["class_embed.1.bias"] = both["class_embed.1.bias"] + 1
    with pytest.raises(ValueError, match=r"class_embed\.1\.bias is not equal to model\.decoder\.class_embed\.1\.bias"):
        load_model(both, heads=4)


def test_a_base_model_has_the_encoder_s_heads_alone(state, port, caplog):
    base = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if not name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed"))
    }
    model = load_model(base, heads=4)
    assert "not in the checkpoint, so started from random weights: box_head, class_head" in caplog.text
    mine, theirs = weights_of(model), weights_of(port(V1.case))
    for path in theirs:
        if not path.startswith(("class_head", "box_head")):
            np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)


def test_a_detector_inside_of_another_module_is_found(state, port):
    authors = {f"module.model.{name}": tensor for name, tensor in authors_names.rt_detr(state).items()}
    ours = {f"detector.{name}": tensor for name, tensor in state.items()}
    for tensors in (authors, ours):
        assert_same(load_model(tensors, heads=4), port(V1.case))


def test_files_between_the_authors_codes_are_read(state, port):
    """The second code runs the first decoder, too; and its projections may have the first code's names."""
    second = authors_names.rt_detr_v2(state)
    for old, new in (("proj", "0"), ("norm", "1")):
        second = moved(second, f"decoder.enc_output.{old}", f"decoder.enc_output.{new}")
    model = load_model(second, heads=4)
    assert type(model) is td.RTDETR
    assert_same(model, port(V1.case))


def test_what_is_kept_beside_weights_is_passed_over(state, port):
    kept = {
        "decoder.anchors": np.full((1, 84, 4), np.inf, np.float32),
        "decoder.valid_mask": np.zeros((1, 84, 1), np.float32),
        "encoder.pos_embed2": np.ones((1, 4, 48), np.float32),
        "backbone.res_layers.0.blocks.0.branch2a.norm.num_batches_tracked": np.array(7),
    }
    assert_same(load_model({**authors_names.rt_detr(state), **kept}, heads=4), port(V1.case))
    with pytest.raises(ValueError, match=r"1 unexpected: decoder\.something_else"):
        load_model({**authors_names.rt_detr(state), "decoder.something_else": np.ones(3, np.float32)}, heads=4)


def test_files_without_the_embedding_of_denoising(state, folder, port, caplog):
    without = {name: tensor for name, tensor in state.items() if name != DENOISING}
    model = load_model(folder(tensors=without))
    assert "so started from random weights: denoising_embedding" in caplog.text
    embeddings = np.asarray(model.denoising_embedding.embeddings)
    assert not embeddings[-1].any()
    assert embeddings[:-1].all()
    caplog.clear()
    plain = load_model(folder(tensors=without, num_denoising=0))
    assert not warnings_in(caplog)
    assert "denoising_embedding" not in {path.split("/")[0] for path in weights_of(plain)}
    expected = weights_of(port(V1.case))
    for path, value in weights_of(plain).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_the_padding_of_denoising_stays_the_last_row(folder, state):
    """Of transformers it is not zero."""
    model = td.from_pretrained(folder(), id2label=["sky", "sun"])
    embeddings, theirs = np.asarray(model.denoising_embedding.embeddings), state[DENOISING]
    assert theirs[-1].any()
    np.testing.assert_array_equal(embeddings[[0, 2]], theirs[[3, -1]])


@pytest.mark.slow
@pytest.mark.parametrize("member", [V1, V2, MEMBERS["DFINE"]], ids=lambda member: member.name)
def test_compare_agrees_stage_by_stage(member, answers):
    """By the folder, and through the tables by the authors' names."""
    folder = answers(member.case).checkpoint
    named = list(member.namings.values())[-1](load_file(folder / "model.safetensors"))
    for source, options, told in (
        (folder, {}, "read by transformers itself"),
        (named, {"heads": 4}, "written from the ported model through the name tables"),
    ):
        rows, origin = comparing.compare(source, height=192, width=224, **options)
        assert origin == told
        assert [row.stage for row in rows][-4:] == ["decoder.layer1", "decoder.layer2", "logits", "pred_boxes"]
        assert all(row.agrees for row in rows), comparing.table(rows)


# ---- what the files say ----


def test_batch_normalization_is_trained_as_the_authors_do(folder):
    basic = load_model(folder(freeze_backbone_batch_norms=True)).config  # as all that is published says
    assert (basic.backbone.batch_norm, basic.frozen) == ("trainable", ())
    large = load_model(folder(LARGE)).config
    assert (large.backbone.batch_norm, large.frozen) == ("frozen", ("stem",))
    other = load_model(folder(LARGE, freeze_backbone_batch_norms=False)).config
    assert (other.backbone.batch_norm, other.frozen) == ("trainable", ())


def test_frozen_statistics_count_no_batches(answers, port, tmp_path):
    export(port(LARGE), tmp_path / "again")
    written, before = (load_file(one / "model.safetensors") for one in (tmp_path / "again", answers(LARGE).checkpoint))
    assert written.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
        assert written[name].dtype == array.dtype, name
    assert load_model(tmp_path / "again").config == port(LARGE).config


def test_positions_that_transformers_leaves_out_are_added(folder, port, caplog):
    model = load_model(folder(eval_size=[96, 96]))
    assert "says eval_size=[96, 96], with which transformers leaves positions out when it evaluates" in caplog.text
    assert model.config == port(V1.case).config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_before": True}, "normalize_before=True, but here it is False alone"),
        ({"with_box_refine": False}, "with_box_refine=False"),
        ({"use_focal_loss": False}, "use_focal_loss=False"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06, but here it is 1e-05"),
        ({"batch_norm_eps": 1e-3}, "batch_norm_eps=0.001"),
        ({"positional_encoding_temperature": 20}, "positional_encoding_temperature=20"),
        ({"feat_strides": [4, 8, 16]}, r"feat_strides=\[4, 8, 16\] with num_feature_levels=3"),
        ({"num_feature_levels": 4}, r"feat_strides=\[8, 16, 32\] with num_feature_levels=4"),
        ({"encoder_activation_function": "gelu_new"}, "encoder_activation_function='gelu_new', but here it is one of"),
        ({"activation_function": "leaky_relu"}, "activation_function='leaky_relu'"),
        ({"decoder_activation_function": "gelu_10"}, "decoder_activation_function='gelu_10'"),
        ({"backbone_config": {"model_type": "resnet"}}, "model_type='resnet', but only rt_detr_resnet can be read"),
        ({"backbone_config": None, "backbone": "resnet50d"}, "backbone 'resnet50d', but only rt_detr_resnet"),
        ({"backbone_config": {"hidden_act": "silu"}}, "hidden_act='silu', but only 'relu'"),
        ({"backbone_config": {"downsample_in_bottleneck": True}}, "downsample_in_bottleneck=True, but only False"),
        (
            {"backbone_config": {"layer_type": "basic", "hidden_sizes": [16, 16, 32, 48], "embedding_size": 16}},
            r"channels of stem and stages \(16, 16, 16, 32, 48\): with basic blocks transformers halves",
        ),
    ],
)
def test_settings_that_are_refused_by_name(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(folder(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_method": "nearest"}, "decoder_method='nearest', but here it is one of default, discrete"),
        ({"decoder_n_levels": 2}, "decoder_n_levels=2, but here the decoder looks at all num_feature_levels=3"),
    ],
)
def test_settings_of_the_second_version(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(folder(V2.case, **changes))


def test_points_of_each_level_are_read_from_a_list(folder):
    same = load_model(folder(V2.case, decoder_n_points=[3, 3, 3]))
    assert same.config == V2.config
    state = load_file(folder(V2.case) / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if not name.endswith("n_points_scale")}
    other = load_model(folder(V2.case, state, decoder_n_points=[2, 3, 4]))  # as many in all
    assert other.config.decoder_points == (2, 3, 4)


def test_a_matching_of_another_focal_loss_is_told(folder, caplog):
    load_model(folder(matcher_alpha=0.5))
    assert "config.json says matcher_alpha=0.5 of the matching, which has 0.25 here" in caplog.text


def test_heads_that_do_not_fit_are_told(state):
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("n_points_scale")}
    with pytest.raises(ValueError, match=r"5 heads cannot share the 48 attention weights .* how many heads there are"):
        load_model(bare, heads=5)


# ---- the authors' files ----


def test_the_average_is_what_counts(state, pytorch, port, tmp_path, caplog):
    """As in the authors' code; others evaluate the weights themselves."""
    authors = authors_names.rt_detr(state)
    trained = {name: tensor + 1 if tensor.dtype == np.float32 else tensor for name, tensor in authors.items()}
    content = {"model": trained, "ema": {"module": authors, "updates": 3, "warmups": 2000}, "last_epoch": 3}
    pytorch.call("pickles:write", tmp_path / "both.pth", content)
    assert_same(load_model(tmp_path / "both.pth", heads=4), port(V1.case))
    assert "the average of the weights is taken (ema.module), as its authors do" in caplog.text
    assert "it also holds other weights (model), left out" in caplog.text
    caplog.clear()
    for name, one in (("released", {"ema": {"module": authors}}), ("plain", {"model": authors})):
        pytorch.call("pickles:write", tmp_path / f"{name}.pth", one)
        assert_same(load_model(tmp_path / f"{name}.pth", heads=4), port(V1.case))
    assert not warnings_in(caplog)


@pytest.mark.parametrize("whose", ["authors", "hugging-face"])
def test_a_backbone_alone_starts_a_model_as_it_is_published(whose, caplog):
    preset = td.RTDETRConfig(**SIZES["r18"])
    original = td.RTDETR(preset)
    family = family_of(preset)
    names = family.authors_scheme(preset) if whose == "authors" else family.hugging_face_scheme(preset)
    before = {"authors": "backbone.", "hugging-face": TRUNK}[whose]
    tensors = to_torch(original, names).items()
    state = {name.removeprefix(before): tensor for name, tensor in tensors if name.startswith(before)}
    model = load_model(state)
    assert type(model) is td.RTDETR
    assert nearest_preset(model.config) == td.RTDETR.presets["rt-detr-r18"]
    found = weights_of(model)
    for path, value in weights_of(original).items():
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert "started from random weights: box_head, class_head, decoder," in caplog.text


@pytest.mark.slow
def test_a_pth_tells_what_no_shape_tells(tmp_path):
    fields = {
        "encoder_activation": "silu",
        "activation_function": "relu",
        "decoder_activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "num_queries": 11,
        "num_denoising": 20,
        "label_noise_ratio": 0.3,
        "box_noise_scale": 0.5,
        "attended_levels": (0, 2),
        "inference_layers": 2,
        "expansion": 0.34,
        "fusion_blocks": 2,
        "encoder_attention_heads": 2,
        "decoder_points": (1, 4, 2),
        "sampling": "discrete",
        "offset_scale": 0.5,
    }
    original = V2.new(**fields)
    export_pth(original, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth", id2label=original.id2label)
    assert_same(again, original)
    for name in fields:
        if name != "expansion":  # told from how many channels are left
            assert getattr(again.config, name) == getattr(original.config, name), name


@pytest.mark.slow
def test_the_second_code_finds_all_that_it_keeps(tmp_path):
    """Its anchors of 640 × 640 pixels: 316 of 8400 lie too near to the border of the finest level."""
    export_pth(V2.new(offset_scale=0.5, decoder_points=(1, 4, 2)), tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert checkpoint.shapes["decoder.anchors"] == (1, 8400, 4)
    with pytest.raises(ValueError, match=r"decoder\.anchors holds values that are not finite"):
        checkpoint.read("decoder.anchors")
    mask = checkpoint.read("decoder.valid_mask")
    assert mask.shape == (1, 8400, 1)
    assert 8400 - mask.sum() == 316
    scales = checkpoint.read("decoder.decoder.layers.1.cross_attn.num_points_scale")
    np.testing.assert_array_equal(scales, np.float32([1, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("member", "changes", "message"),
    [
        (V1, {"fusion_blocks": 2}, "fusion_blocks=2, but transformers has 3 alone"),
        (V1, {"inference_layers": 2}, "inference_layers=2, but transformers computes all 3"),
        (V1, {"decoder_activation": "elu"}, "decoder_activation='elu' is not known to be the same in transformers"),
        (V1, {"backbone": td.ResNetConfig("basic", (1, 2, 1, 1), (16, 24, 32, 48), 16)}, 'written with variant="vd"'),
        (V2, {"decoder_points": (1, 2, 3)}, r"decoder_points=\(1, 2, 3\), but transformers 5 takes one number"),
    ],
)
def test_what_transformers_lacks(member, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(member.new(**changes), tmp_path / "folder")
    if "variant" not in message:
        return
    with pytest.raises(ValueError, match="is not written with a backbone of timm"):
        export(member.new(), tmp_path / "folder", backbone="timm")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "changes", "message"),
    [
        (V1, {"encoder_activation": "elu"}, "encoder_activation='elu' is not known to be the same in lyuwenyu/RT-DETR"),
        (V2, {"offset_scale": 0.4}, r"offset_scale=0\.4, but lyuwenyu/RT-DETR, rtdetrv2_pytorch has 0\.5 alone"),
    ],
)
def test_what_the_authors_lack(member, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_pth(member.new(**changes), tmp_path / "model.pth")


# ---- images ----

PROCESSOR = {  # of published checkpoints
    "do_convert_annotations": True,
    "do_normalize": False,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "RTDetrImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "pad_size": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 640, "width": 640},
}
PADDED = {"size": {"max_height": 96, "max_width": 150}, "do_pad": True, "pad_size": {"height": 96, "width": 150}}


@pytest.mark.parametrize("left_out", [(), ("do_normalize",), ("size",), ("do_normalize", "do_pad", "size", "resample")])
def test_the_published_processor_is_that_of_the_presets(tmp_path, left_out):
    told = {name: value for name, value in PROCESSOR.items() if name not in left_out}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    assert read_processor(tmp_path, PUBLISHED_IMAGES) == PUBLISHED_IMAGES
    normalized = read_processor_of(tmp_path, **{**told, "do_normalize": True})
    assert normalized == dataclasses.replace(PUBLISHED_IMAGES, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def read_processor_of(folder, **told):
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return read_processor(folder, PUBLISHED_IMAGES)


def test_the_processor_is_written_as_it_is_published(tmp_path, caplog):
    written = processor_of(PUBLISHED_IMAGES, V1.config)
    assert not warnings_in(caplog)
    same = ("do_normalize", "do_pad", "do_rescale", "do_resize", "image_processor_type", "resample", "size")
    assert {name: written[name] for name in same} == {name: PROCESSOR[name] for name in same}
    assert read_processor_of(tmp_path, **written) == PUBLISHED_IMAGES


def test_padding_is_refused_by_name():
    padded = td.Preprocessing((480, 640), "fit", (480, 640), multiple_of=32)
    with pytest.raises(ValueError, match=r"pad_to=\(480, 640\), but a RTDETRV2 takes no padding"):
        processor_of(padded, V2.config)


@pytest.mark.parametrize(
    ("told", "size"),
    [
        (PADDED, (96, 160)),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (640, 640)),
        ({"size": {"height": 500, "width": 64}}, (512, 64)),
    ],
    ids=["padded", "shortest edge", "no multiple"],
)  # fmt: skip
def test_a_processor_that_pads_is_told_and_images_are_stretched(told, size, folder, caplog):
    """As transformers' own script for fine-tuning writes it."""
    copy = folder()
    (copy / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **told}))
    model = load_model(copy)
    assert model.preprocessing == dataclasses.replace(PUBLISHED_IMAGES, size=size)
    [warning] = [text for text in warnings_in(caplog) if "preprocessor_config.json" in text]
    assert f"so images are stretched to {size[0]} x {size[1]} pixels (height x width)" in warning


def test_other_queries_are_other_tokens(folder, caplog):
    model = load_model(folder(), num_queries=5)
    assert model.config.num_queries == 5
    assert f"the best 5 tokens are the queries, not {V1.config.num_queries}" in caplog.text
    assert "query embeddings" not in caplog.text


def test_learned_content_has_as_many_rows_as_queries(tmp_path):
    model = td.RTDETR(dataclasses.replace(V1.config, learned_content=True))
    export_pth(model, tmp_path / "learned.pth")
    assert load_model(tmp_path / "learned.pth", num_queries=5).config.num_queries == 5


def test_names_of_files_tell_of_discrete_sampling(pytorch, tmp_path, caplog, port):
    state = to_torch(port(V2.case), family_of(V2.config).authors_scheme(V2.config))
    for name, sampling in (("rtdetrv2_r18vd_dsp_3x_coco.pth", "discrete"), ("rtdetrv2_r18vd.pth", "bilinear")):
        pytorch.call("pickles:write", tmp_path / name, {"model": state})
        assert load_model(tmp_path / name, heads=4).config.sampling == sampling
    assert "rtdetrv2_r18vd_dsp_3x_coco.pth: discrete sampling, as its name says (dsp)" in caplog.text


def test_a_backbone_that_is_no_resnet_is_refused_by_name(state):
    authors = authors_names.rt_detr(state)  # the second version has an HGNetV2, too
    rest = {name: tensor for name, tensor in authors.items() if not name.startswith("backbone.")}
    hgnet = {"backbone.stem.stem1.conv.weight": np.zeros((16, 3, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"over a HGNetV2 that is no ResNet-vd, the only backbone it has here"):
        load_model({**rest, **hgnet}, heads=4)
    with pytest.raises(ValueError, match=r"over a network that is no ResNet-vd"):
        load_model({**rest, "backbone.conv_bn.weight": np.zeros(3, np.float32)}, heads=4)


@pytest.mark.slow
def test_the_authors_compute_half_of_the_decoder_of_r50_m(tmp_path, caplog, pytorch):
    for name, layers in (("rt-detr-r50-m", 3), ("rt-detr-v2-r50-m", 3), ("rt-detr-r50", None)):
        original = td.from_preset(name)
        state = to_torch(original, family_of(original.config).authors_scheme(original.config))
        pytorch.call("pickles:write", tmp_path / "released.pth", {"ema": {"module": state}})
        caplog.clear()
        assert load_model(tmp_path / "released.pth").inference_layers == layers
        assert ("its authors compute 3 of 6 decoder layers" in caplog.text) == (layers is not None)


@pytest.mark.slow
def test_transformers_prepares_images_alike(port, pytorch, tmp_path):
    """By its own processor, from the file that is written."""
    model = port(V1.case)
    export(model, tmp_path / "folder", size=(96, 160))
    image = np.random.default_rng(0).integers(0, 256, (123, 211, 3), np.uint8)
    prepared = pytorch.call("processors:prepare_by_rt_detr", tmp_path / "folder", image)["pixel_values"]
    records = td.data.image_files.records_of([image])
    [(inputs, _)] = td.data.prepare(records, 1, size=(96, 160), preprocessing=model.preprocessing)
    assert prepared.shape == (1, 3, 96, 160)
    np.testing.assert_allclose(
        inputs["pixel_values"][0],
        prepared[0].transpose(1, 2, 0),
        rtol=0,
        atol=1.01 / 255,  # one level
    )
