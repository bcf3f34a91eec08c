"""Both sides of a parity test: a PyTorch model with random weights, its Keras port, one batch, stages by one name.

The stages carry the names and layouts of `tfdetr_keras.models.DETR.stages`: feature maps `(batch, h, w, channels)`,
sequences `(batch, positions, d_model)`. PyTorch's side is in a process of its own: see `reference`.
"""

import dataclasses
import re

import numpy as np
from reference.descriptions import Facebook, HuggingFace
from reference.process import PyTorch

from port_weights import load_model
from port_weights.schemes import detect_scheme
from tfdetr_keras import SetCriterion
from tfdetr_keras.models import DETR

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
    """A PyTorch model in evaluation mode, by its description, and its Keras port.

    Args:
        reference: what the PyTorch model is.
        keras: the port.
        names: of the PyTorch model's `state_dict()`.
        pytorch: where PyTorch runs.
    """

    reference: HuggingFace | Facebook
    keras: DETR
    names: tuple[str, ...]
    pytorch: PyTorch

    def torch_stages(self, batch):
        """PyTorch's stages of a batch in Keras' layout."""
        return self.pytorch.call("stages:of_batch", self.reference, batch)

    def torch_names(self):
        """For each trainable Keras variable `(path, variable, PyTorch name, layout between the two)`."""
        scheme = detect_scheme(self.names)
        for variable in self.keras.trainable_variables:
            path = variable.path.split("/", 1)[1]
            yield path, variable, *scheme.torch_name(path)

    def has_effect(self, path):
        """Whether a weight can change the outputs at all."""
        return has_effect(path, self.keras.config.pre_norm)


def has_effect(path, pre_norm):
    """Whether a weight of a model can change the outputs at all."""
    return not re.fullmatch(f"{_WITHOUT_EFFECT}|{_ZERO_QUERIES[pre_norm]}", path)


def hugging_face_model(backbone, family="Detr", task="ObjectDetection", seed=0, **fields):
    """A Hugging Face model over one of `RESNETS` with nothing at its default value; no dropout."""
    resnet = {"embedding_size": 64, **RESNETS[backbone]}
    return HuggingFace(f"{family}For{task}", resnet, {"num_labels": 91, "dropout": 0.0, **fields}, seed=seed)


def hugging_face_pair(pytorch, folder, backbone, **options):
    """`hugging_face_model` and its port by way of the files that `save_pretrained` writes into `folder`."""
    reference = hugging_face_model(backbone, **options)
    names = pytorch.call("models:save", reference, folder)
    return Pair(reference, load_model(folder), tuple(names), pytorch)


def facebook_pair(pytorch, folder, seed=0, **options):
    """A `FacebookDetr`, small where `options` do not say otherwise, and its port by way of the `state_dict`."""
    options = {**FACEBOOK_SMALL, **options}
    reference = Facebook(options, seed=seed)
    state = pytorch.call("models:state", reference)
    ported = load_model(state, heads=options["heads"], dilation=options.get("dilated", False))
    ported.criterion = SetCriterion()  # on both sides DETR's own loss, also of a Table Transformer
    return Pair(reference, ported, tuple(state), pytorch)


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


def differences(got, expected):
    """Largest |Δ| of each stage; those between backbone and heads as a part of the stage's largest value."""
    assert set(got) == set(expected)
    found = {}
    for name, array in expected.items():
        mine, theirs = np.asarray(got[name], np.float64), array.astype(np.float64)
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
