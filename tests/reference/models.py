"""Detectors of the reference: built from a description or read from files, their weights and their outputs."""

import collections
import copy

import torch
import transformers

from reference import facebook, weights
from reference.descriptions import Facebook
from reference.pickles import read

KEPT = 3  # models: tests ask several things of one, and the largest has 250 MB
_built = collections.OrderedDict()


def build(description):
    """The described model, in evaluation mode: one object for all callers, which none of them may change."""
    key = repr(description)
    if key not in _built:
        while len(_built) >= KEPT:
            _built.popitem(last=False)
        torch.manual_seed(description.seed)  # for what the values leave as it was made
        model = _facebook(description) if isinstance(description, Facebook) else _hugging_face(description)
        getattr(weights, description.values)(model, description.seed)
        _built[key] = model.eval()
    _built.move_to_end(key)
    return _built[key]


def _facebook(description):
    return facebook.FacebookDetr(**description.fields)


def _hugging_face(description):
    if description.architecture.startswith("RTDetr"):
        return _rt_detr(description)
    if description.architecture.startswith("DFine"):
        return _d_fine(description)
    if description.architecture.startswith(("LwDetr", "RfDetr")):
        return _of_groups(description)
    stages = [f"stage{number}" for number, _ in enumerate(description.backbone["depths"], start=1)]
    kind = getattr(transformers, description.architecture)
    if (levels := getattr(kind.config_class, "num_feature_levels", None)) is not None:
        levels = description.fields.get("num_feature_levels", levels)
        stages = stages[-min(levels, 3) :]  # each of them becomes a level
    backbone = transformers.ResNetConfig(**description.backbone, out_features=stages)
    model = kind(kind.config_class(use_timm_backbone=False, backbone_config=backbone, **description.fields))
    if description.fields.get("with_box_refine"):
        # Each layer has heads of its own, as in the authors' code; transformers ties those of classes.
        model.class_embed = torch.nn.ModuleList([copy.deepcopy(head) for head in model.class_embed])
        if description.fields.get("two_stage"):
            model.model.decoder.class_embed = model.class_embed
    return model


def _rt_detr(description):
    """RT-DETR or RT-DETRv2 over its own ResNet; widths that follow from others need not be told."""
    kind, fields = getattr(transformers, description.architecture), dict(description.fields)
    depths, sizes = description.backbone["depths"], description.backbone["hidden_sizes"]
    levels = min(fields.get("num_feature_levels", 3), 3)  # of the trunk; further ones are made of its last
    backbone = transformers.RTDetrResNetConfig(
        **description.backbone, out_indices=list(range(len(depths) + 1 - levels, len(depths) + 1))
    )
    if "num_feature_levels" in fields and hasattr(kind.config_class, "decoder_n_levels"):
        fields.setdefault("decoder_n_levels", fields["num_feature_levels"])
    fields.setdefault("encoder_in_channels", list(sizes[-levels:]))
    fields.setdefault("decoder_in_channels", [fields.get("encoder_hidden_dim", 256)] * levels)
    return kind(kind.config_class(backbone_config=backbone, **fields))


def _d_fine(description):
    """D-FINE over its own HGNetV2; widths that follow from others need not be told."""
    kind, fields = getattr(transformers, description.architecture), dict(description.fields)
    channels = description.backbone["stage_out_channels"]
    levels = fields.get("num_feature_levels", 3)
    backbone = transformers.HGNetV2Config(
        **description.backbone, out_indices=list(range(len(channels) + 1 - levels, len(channels) + 1))
    )
    fields.setdefault("feat_strides", [8, 16, 32][-levels:])
    fields.setdefault("encoder_in_channels", list(channels[-levels:]))
    fields.setdefault("decoder_in_channels", [fields.get("encoder_hidden_dim", 256)] * levels)
    return kind(kind.config_class(backbone_config=backbone, **fields))


def _of_groups(description):
    """LW-DETR or RF-DETR over its own vision transformer."""
    kind = getattr(transformers, description.architecture)
    of_backbone = {"LwDetr": transformers.LwDetrViTConfig, "RfDetr": transformers.RfDetrDinov2Config}
    backbone = of_backbone[description.architecture[:6]](**description.backbone)
    return kind(kind.config_class(backbone_config=backbone, **description.fields))


def configured(config, arrays):
    """The model of a `config.json`'s content with the given weights, all of them and nothing else."""
    model = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    return model.eval()


def inputs(batch):
    """`pixel_values` `(batch, 3, height, width)` and `pixel_mask`, None where there is none, of a batch for Keras."""
    mask = batch.get("pixel_mask")
    return torch.from_numpy(batch["pixel_values"]).permute(0, 3, 1, 2), None if mask is None else torch.from_numpy(mask)


def state(description):
    """The model's `state_dict()`."""
    return build(description).state_dict()


def save(description, folder):
    """Writes the folder of `save_pretrained`; returns the names of `state_dict()`, which may be others."""
    model = build(description)
    model.save_pretrained(folder)
    return list(model.state_dict())


def save_base(description, folder):
    """Writes the folder of the base model, which has no heads."""
    build(description).model.save_pretrained(folder)


def save_classifier(description, arrays, folder):
    """Writes the folder of an image classifier whose backbone is the model's; returns which names did not match.

    Args:
        description: of the model.
        arrays: weights by the classifier's names.
        folder: where to.
    """
    classifier = transformers.ResNetForImageClassification(build(description).config.backbone_config)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing, unexpected = classifier.load_state_dict(tensors, strict=False)
    classifier.save_pretrained(folder)
    return missing, unexpected


def save_random(config, folder, seed=0):
    """Writes the folder of a model of a `config.json`'s content with random weights."""
    model = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))
    weights.telling(model, seed)
    model.save_pretrained(folder)


def save_pickle(description, path):
    """Writes `{"model": state_dict()}` to a file."""
    torch.save({"model": build(description).state_dict()}, path)


def save_state(description, path):
    """Writes `state_dict()` itself to a file."""
    torch.save(build(description).state_dict(), path)


@torch.no_grad()
def outputs(description, batch):
    """The outputs of a batch by name."""
    return _arrays(build(description)(*inputs(batch)))


@torch.no_grad()
def outputs_in_float64(description, batch):
    """The same, computed in float64 from the same float32 weights."""
    pixel_values, pixel_mask = inputs(batch)
    return _arrays(copy.deepcopy(build(description)).double()(pixel_values.double(), pixel_mask))


def _arrays(outputs):
    return {name: outputs[name] for name in ("logits", "pred_boxes", "pred_masks") if name in outputs}


def read_folder(folder, batch=None):
    """What `AutoModelForObjectDetection` makes of a folder.

    Returns:
        `"class"`, its name; `"loading"`, which tensors were missing, left over, or of another shape; `"config"`, its
        configuration, and `"id2label"` of that; and with a batch the outputs of that by name.
    """
    model, loading = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    return {
        "class": type(model).__name__,
        "loading": loading,
        "config": model.config.to_dict(),
        "id2label": model.config.id2label,
        **({} if batch is None else _run(model, batch)),
    }


@torch.no_grad()
def _run(model, batch):
    return _arrays(model.eval()(*inputs(batch)))


def outputs_of_folder(architecture, folder, batch):
    """The outputs of the given class's `from_pretrained`."""
    return _run(getattr(transformers, architecture).from_pretrained(folder), batch)


def outputs_of_pickle(path, fields, batch):
    """The outputs of a `FacebookDetr` with a file's weights, all of them and nothing else."""
    model = facebook.FacebookDetr(**fields)
    model.load_state_dict(read(path)["model"], strict=True)
    return _run(model, batch)


@torch.no_grad()
def stages_of_backbone(fields, arrays, pixel_values):
    """The maps of a `facebook.ResNet` with the given weights, in Keras' layout."""
    body = facebook.ResNet(*fields)
    body.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    return [x.permute(0, 2, 3, 1) for x in body(torch.from_numpy(pixel_values).permute(0, 3, 1, 2))]


def config_of_folder(folder):
    """The content of `AutoConfig.from_pretrained`."""
    return transformers.AutoConfig.from_pretrained(folder).to_dict()


def fields_of(kind):
    """The fields that a configuration class adds to those of all."""
    return set(getattr(transformers, kind)().to_dict()) - set(transformers.PretrainedConfig().to_dict())
