"""The names that others than transformers give the same tensors, from those of `save_pretrained`."""

import re

import numpy as np


def timm_name(name):
    """Return the name of a tensor of transformers' ResNet in timm's and torchvision's, without prefix."""
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    name = re.sub(r"encoder\.stages\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name)
    name = re.sub(r"layers\.(\d)", r"\1", name)
    name = re.sub(r"layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}", name)
    return re.sub(r"layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}", name)


def with_timm(state):
    """Return a state dict as transformers writes it of a model over a backbone of timm."""
    return {
        re.sub(r"(.*conv_encoder\.model\.)(.*)", lambda match: match[1] + timm_name(match[2]), name): tensor
        for name, tensor in state.items()
    }


def facebookresearch(state, cross_attention="multihead_attn", prefix=""):
    """Return a state dict as the authors' code has it: facebookresearch's of DETR, and what was made of that.

    Args:
        state: as `save_pretrained` writes it.
        cross_attention: the name of the decoder's attention to the image.
        prefix: of all but the mask head.
    """
    rules = [
        ("class_labels_classifier", "class_embed"),
        ("bbox_predictor", "bbox_embed"),
        ("query_position_embeddings", "query_embed"),
        ("input_projection", "input_proj"),
        ("encoder_attn_layer_norm", "norm2"),
        ("encoder_attn", cross_attention),
        ("self_attn_layer_norm", "norm1"),
        (".fc", ".linear"),
        ("layernorm", "norm"),
    ]
    renamed = {}
    for original, tensor in state.items():
        if original.startswith(("bbox_attention", "mask_head")):
            renamed[original] = tensor
            continue
        name = original.removeprefix("detr.").removeprefix("model.")
        if name.startswith("backbone."):
            name = timm_name(name.removeprefix("backbone.conv_encoder.model."))
            renamed[f"{prefix}backbone.0.body.{name}"] = tensor
            continue
        for old, new in [*rules, ("final_layer_norm", "norm3" if "decoder" in name else "norm2")]:
            name = name.replace(old, new)
        renamed[prefix + (f"transformer.{name}" if re.match("(en|de)coder", name) else name)] = tensor
    return _packed(renamed)


def dab_with_timm(state):
    """Return a state dict as transformers writes it of a DAB-DETR, whose backbone of timm is one level further in."""
    part = ".conv_encoder.model."
    return {name.replace(part, f"{part}_backbone."): tensor for name, tensor in with_timm(state).items()}


def dab_in_memory(state):
    """Return `state_dict()` of transformers' model, which holds the box head twice."""
    copies = {name for name in state if name.startswith("bbox_predictor.")}
    return state | {name.replace("bbox_predictor", "model.decoder.bbox_embed"): state[name] for name in copies}


def idea_research(state):
    """Return a state dict as IDEA-Research/DAB-DETR has it, with the box head twice."""
    rules = [
        (r"self_attn\.self_attn_(query|key)_(content|pos)_proj", lambda m: f"sa_{m[1][0]}{m[2]}_proj"),
        (r"self_attn\.self_attn_value_proj", "sa_v_proj"),
        (r"self_attn\.self_attn\.output_proj", "self_attn.out_proj"),
        (r"self_attn\.self_attn_layer_norm", "norm1"),
        (r"cross_attn\.cross_attn_(query|key)_(content|pos)_proj", lambda m: f"ca_{m[1][0]}{m[2]}_proj"),
        (r"cross_attn\.cross_attn_query_pos_sine_proj", "ca_qpos_sine_proj"),
        (r"cross_attn\.cross_attn_value_proj", "ca_v_proj"),
        (r"cross_attn\.cross_attn\.output_proj", "cross_attn.out_proj"),
        (r"cross_attn\.cross_attn_layer_norm", "norm2"),
        (r"mlp\.final_layer_norm", "norm3"),
        (r"final_layer_norm", "norm2"),
        (r"self_attn_layer_norm", "norm1"),
        (r"(mlp\.)?fc([12])", r"linear\2"),
        (r"(mlp\.)?activation_fn", "activation"),
        (r"layernorm", "norm"),
        (r"query_refpoint_embeddings", "refpoint_embed"),
        (r"input_projection", "input_proj"),
        (r"bbox_predictor", "bbox_embed"),
    ]
    renamed = {}
    for original, tensor in state.items():
        name = original.removeprefix("model.")
        if name.startswith("backbone."):
            renamed[f"backbone.0.body.{timm_name(name.removeprefix('backbone.conv_encoder.model.'))}"] = tensor
            continue
        for old, new in rules:
            name = re.sub(old, new, name)
        renamed[f"transformer.{name}" if re.match("(en|de)coder|patterns", name) else name] = tensor
        if name.startswith("bbox_embed."):
            renamed[f"transformer.decoder.{name}"] = tensor
    return _packed(renamed)


def _packed(state):
    """Query, key and value of each attention in one tensor."""
    state = dict(state)
    for name in [name for name in state if ".q_proj." in name]:
        kind = name.rsplit(".", 1)[1]
        parts = [state.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        state[name.replace(f".q_proj.{kind}", f".in_proj_{kind}")] = np.concatenate(parts)
    return state


def fundamentalvision(state):
    """Return a Deformable DETR's state dict as the authors' code has it, with all copies of its heads.

    Args:
        state: as `save_pretrained` writes it of a model whose boxes are refined.
    """
    beside = ("input_proj.", "class_embed.", "bbox_embed.")
    renamed = {}
    for original, tensor in state.items():
        name = original.removeprefix("model.")
        if name.startswith("backbone."):
            name = timm_name(name.removeprefix("backbone.conv_encoder.model."))
            renamed[f"backbone.0.body.{name}"] = tensor
            continue
        name = name.replace("query_position_embeddings", "query_embed").replace("encoder_attn.", "cross_attn.")
        norms = ["norm2", "norm1", "norm3"] if name.startswith("decoder") else ["norm1", "", "norm2"]
        for old, new in zip(
            ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"), norms, strict=True
        ):
            name = re.sub(rf"\b{old}", new, name)
        name = name.replace(".fc", ".linear")
        if name.startswith(("query_embed", *beside)):
            renamed[name] = tensor
        elif name.startswith("decoder.bbox_embed"):
            renamed[f"transformer.{name}"] = renamed[name.removeprefix("decoder.")] = tensor
        else:
            renamed[f"transformer.{name}"] = tensor
    return _packed(renamed)


def with_copies(state):
    """Return a Deformable DETR's state dict with its heads beside the decoder and inside of it."""
    prefix = "model.decoder."
    copies = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(f"{prefix}bbox_")}
    return {**state, **copies}


def rt_detr(state):
    """Return RT-DETR's state dict as the authors' first code has it, `rtdetr_pytorch` of lyuwenyu/RT-DETR.

    Args:
        state: as `save_pretrained` writes it.
    """
    return _packed({_name_in_rt_detr(name): tensor for name, tensor in state.items()})


def rt_detr_v2(state):
    """Return RT-DETRv2's state dict as the authors' second code has it, `rtdetrv2_pytorch` of lyuwenyu/RT-DETR.

    Args:
        state: as `save_pretrained` writes it.
    """
    rules = [
        (r"^(encoder\.input_proj\.\d+\.)0\.", r"\1conv."),
        (r"^(encoder\.input_proj\.\d+\.)1\.", r"\1norm."),
        (r"^decoder\.enc_output\.0\.", "decoder.enc_output.proj."),
        (r"^decoder\.enc_output\.1\.", "decoder.enc_output.norm."),
    ]
    return {_by_rules(rules, name): tensor for name, tensor in rt_detr(state).items()}


def rt_detr_in_memory(state):
    """Return `state_dict()` of transformers' RT-DETR or RT-DETRv2; the second holds its heads twice.

    Args:
        state: as `save_pretrained` writes it.
    """
    rules = [
        ("self_attn.out_proj", "self_attn.o_proj"),
        (r"\.fc([12])\.", r".mlp.fc\1."),
        (r"^model\.encoder\.encoder\.", "model.encoder.aifi."),
    ]
    renamed = {_by_rules(rules, name): tensor for name, tensor in state.items()}
    copies = {}
    if any(name.endswith("n_points_scale") for name in state):
        heads = re.compile(r"model\.decoder\.((class|bbox)_embed\..*)")
        copies = {match[1]: tensor for name, tensor in state.items() if (match := heads.fullmatch(name))}
    return renamed | copies


def d_fine(state):
    """Return D-FINE's state dict as the authors' code has it, Peterande/D-FINE.

    Args:
        state: as `save_pretrained` writes it.
    """
    rules = [
        (r"^model\.backbone\.model\.embedder\.", "backbone.stem."),
        (r"^model\.backbone\.model\.encoder\.", "backbone."),
        (r"^(backbone\..*)convolution", r"\1conv"),
        (r"^(backbone\..*)normalization", r"\1bn"),
        (r"^model\.", ""),
        (r"^encoder_input_proj\.(\d)\.0", r"encoder.input_proj.\1.conv"),
        (r"^encoder_input_proj\.(\d)\.1", r"encoder.input_proj.\1.norm"),
        (r"^decoder_input_proj\.(\d)\.0", r"decoder.input_proj.\1.conv"),
        (r"^decoder_input_proj\.(\d)\.1", r"decoder.input_proj.\1.norm"),
        (r"(downsample_convs\.\d\.)conv(\d)", r"\g<1>0.cv\2"),
        (r"(_blocks\.\d\.)conv([14])\.", r"\1cv\2."),
        (r"(_blocks\.\d\.)csp_rep1", r"\1cv2.0"),
        (r"(_blocks\.\d\.)csp_rep2", r"\1cv3.0"),
        (r"(_blocks\.\d\.)conv([23])\.(conv|norm)", r"\1cv\2.1.\3"),
        (r"^decoder\.(layers|lqe_layers)", r"decoder.decoder.\1"),
        (r"^decoder\.class_embed", "decoder.dec_score_head"),
        (r"^decoder\.bbox_embed", "decoder.dec_bbox_head"),
        (r"^enc_output\.0", "decoder.enc_output.proj"),
        (r"^enc_output\.1", "decoder.enc_output.norm"),
        (r"^(enc_|denoising_class_embed|weight_embedding)", r"decoder.\1"),
        ("weight_embedding", "tgt_embed"),
        (r"encoder_attn\.", "cross_attn."),
        ("self_attn_layer_norm", "norm1"),
        (r"^(decoder\..*)final_layer_norm", r"\1norm3"),
        ("final_layer_norm", "norm2"),
        (r"\.fc([12])\.", r".linear\1."),
    ]
    renamed = _packed({_by_rules(rules, name): tensor for name, tensor in state.items()})
    numbers = {f"decoder.decoder.{name}": renamed[f"decoder.{name}"] for name in ("up", "reg_scale")}
    return {**renamed, **numbers}


def d_fine_in_memory(state):
    """Return `state_dict()` of transformers' D-FINE, which holds its heads twice.

    Args:
        state: as `save_pretrained` writes it.
    """
    rules = [
        ("self_attn.out_proj", "self_attn.o_proj"),
        (r"\.fc1\.", ".mlp.layers.0."),
        (r"\.fc2\.", ".mlp.layers.1."),
        (r"^model\.encoder\.encoder\.", "model.encoder.aifi."),
    ]
    renamed = {_by_rules(rules, name): tensor for name, tensor in state.items()}
    heads = re.compile(r"model\.decoder\.((class|bbox)_embed\..*)")
    return renamed | {match[1]: tensor for name, tensor in state.items() if (match := heads.fullmatch(name))}


def lw_detr(state):
    """Return LW-DETR's state dict as the authors' code has it, Atten4Vis/LW-DETR.

    Args:
        state: as `save_pretrained` writes it.
    """
    rules = [
        (r"^model\.", ""),
        (r"^backbone\.backbone\.embeddings\.position_embeddings", "backbone.0.encoder.pos_embed"),
        (r"^backbone\.backbone\.embeddings\.projection", "backbone.0.encoder.patch_embed.proj"),
        (r"^backbone\.backbone\.encoder\.layer\.", "backbone.0.encoder.blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("intermediate", "mlp"),
        (r"attention\.attention\.(query|key|value)\.weight", lambda match: f"attn.{match[1][0]}_proj.weight"),
        (r"attention\.attention\.(query|value)\.bias", lambda match: f"attn.{match[1][0]}_bias"),
        (r"attention\.output", "attn.proj"),
        (r"^backbone\.projector\.scale_layers\.(\d+)\.projector_layer\.", r"backbone.0.projector.stages.\1.0."),
        (r"^backbone\.projector\.scale_layers\.(\d+)\.layer_norm", r"backbone.0.projector.stages.\1.1"),
        (
            r"^backbone\.projector\.scale_layers\.(\d+)\.sampling_layers\.(\d+)\.layers\.",
            r"backbone.0.projector.stages_sampling.\1.\2.",
        ),
        (r"(projector\..*)bottlenecks", r"\1m"),
        (r"(projector\..*)conv([12])\.", r"\1cv\2."),
        (r"(projector\..*)\.norm\.", r"\1.bn."),
        (r"^reference_point_embed", "refpoint_embed"),
        (r"^(decoder|enc_out)", r"transformer.\1"),
        ("cross_attn_layer_norm", "norm2"),
        ("self_attn_layer_norm", "norm1"),
        (r"(decoder\.layers\.\d+\.)layer_norm", r"\1norm3"),
        (r"(decoder\.layers\.\d+\.)mlp\.fc", r"\1linear"),
        (r"self_attn\.o_proj", "self_attn.out_proj"),
        (r"decoder\.layernorm", "decoder.norm"),
    ]
    packed = _packed({_by_rules(rules, name): tensor for name, tensor in state.items()})
    return {
        name.replace("attn.in_proj_weight", "attn.qkv.weight") if ".blocks." in name else name: tensor
        for name, tensor in packed.items()
    }


def _name_in_rt_detr(name):
    """The first code's name of a tensor; of query, key and value apart."""
    trunk = "model.backbone.model."
    if name.startswith(trunk):
        rules = [
            (r"embedder\.embedder\.(\d)", lambda match: f"conv1.conv1_{int(match[1]) + 1}"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)", r"res_layers.\1.blocks.\2"),
            (r"layer\.(\d)", lambda match: f"branch2{'abc'[int(match[1])]}"),
            (r"shortcut\.1", "short.conv"),
            ("shortcut", "short"),
            ("convolution", "conv"),
            ("normalization", "norm"),
        ]
        return f"backbone.{_by_rules(rules, name.removeprefix(trunk))}"
    in_decoder = name.startswith("model.decoder.layers")
    norms = ("norm1", "norm2", "norm3") if in_decoder else ("norm1", "", "norm2")
    rules = [
        (r"^model\.", ""),
        (r"^encoder_input_proj", "encoder.input_proj"),
        (r"^decoder_input_proj\.(\d)\.0", r"decoder.input_proj.\1.conv"),
        (r"^decoder_input_proj\.(\d)\.1", r"decoder.input_proj.\1.norm"),
        (r"^decoder\.layers", "decoder.decoder.layers"),
        (r"^decoder\.class_embed", "decoder.dec_score_head"),
        (r"^decoder\.bbox_embed", "decoder.dec_bbox_head"),
        (r"^(enc_|denoising_class_embed|weight_embedding)", r"decoder.\1"),
        ("weight_embedding", "tgt_embed"),
        (r"encoder_attn\.", "cross_attn."),
        ("self_attn_layer_norm", norms[0]),
        ("encoder_attn_layer_norm", norms[1]),
        ("final_layer_norm", norms[2]),
        (r"\.fc([12])\.", r".linear\1."),
        ("n_points_scale", "num_points_scale"),
    ]
    return _by_rules(rules, name)


def _by_rules(rules, name):
    for old, new in rules:
        name = re.sub(old, new, name)
    return name
