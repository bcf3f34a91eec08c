"""HGNetV2 beside transformers': each stage's map in evaluation and in training, its names, and folding.

Measured on a CPU: a map differs by at most 6e-7 of its largest value, folded by 1.5e-6; in training in float64 by
2e-13, moving statistics by 6e-15. In float32 the rounding of the batches' statistics adds up to 1e-4 over the stages.
"""

import dataclasses

import numpy as np
import pytest

from port_weights.families.hgnet_v2 import BACKBONES, find_hgnet, hgnet_from_config, hgnet_from_tensors, hgnet_json
from port_weights.tables import Scheme
from tfdetr_keras.backbones.folding import folded_values
from tfdetr_keras.backbones.hgnet_v2 import HGNETS, HGNetV2Config

SMALL = {
    "stem_channels": (8, 12),
    "hidden_channels": (8, 8, 12, 12),
    "channels": (16, 24, 32, 48),
    "depths": (1, 1, 2, 1),
    "block_layers": 2,
}
KINDS = {"plain": {}, "affine": {"learnable_affine": True}}
SIZES = [(96, 96), (64, 128)]


def pixels_of(*sides, batch=2):
    return np.random.default_rng(3).random((batch, *sides, 3), "float32")


def made(config, dtype="float32"):
    backbone = config.make(name="backbone", dtype=dtype)
    backbone.build((None, None, None, 3))
    return backbone


def ported(config, state, dtype="float32"):
    """The backbone with a state dict's weights, all of them."""
    backbone, scheme = made(config, dtype), Scheme("", tuple(BACKBONES["hugging-face"]))
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for variable in backbone.variables:
        name, layout = scheme.torch_name(variable.path)
        assert layout.torch_shape(tuple(variable.shape)) == state[name].shape
        variable.assign(layout.read(state[name], tuple(variable.shape)))
        left.remove(name)
    assert not left
    return backbone


def told(config):
    return {name: value for name, value in hgnet_json(config, 4).items() if name not in ("model_type", "out_indices")}


@pytest.mark.parametrize("how", ["trainable", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", SIZES, ids=str)
def test_every_stage_is_that_of_transformers(pytorch, kind, sides, how):
    config = HGNetV2Config(**SMALL, **KINDS[kind], batch_norm=how)
    expected, state, _ = pytorch.call("hgnet:maps", told(config), pixels_of(*sides))
    found = ported(config, state)(pixels_of(*sides))
    assert [x.shape[1:] for x in found] == [
        (sides[0] // stride, sides[1] // stride, width)
        for stride, width in zip((4, 8, 16, 32), SMALL["channels"], strict=True)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_by_the_batch(pytorch, kind):
    config = HGNetV2Config(**SMALL, **KINDS[kind])
    pixels = pixels_of(96, 64).astype("float64")
    expected, before, after = pytorch.call("hgnet:maps", told(config), pixels, training=True)
    backbone, statistics = (ported(config, state, "float64") for state in (before, after))
    for ours, theirs in zip(backbone(pixels, training=True), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-12 * np.abs(theirs).max())
    assert any("moving_mean" in variable.path for variable in backbone.variables)
    for own, to in zip(backbone.variables, statistics.variables, strict=True):
        np.testing.assert_allclose(own, to, rtol=0, atol=6e-14 * max(1, np.abs(to).max()), err_msg=own.path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["trainable", "frozen"])
def test_folded_it_answers_as_before(pytorch, kind, how):
    config, pixels = HGNetV2Config(**SMALL, **KINDS[kind], batch_norm=how), pixels_of(64, 96)
    _, state, _ = pytorch.call("hgnet:maps", told(config), pixels)
    backbone, folded = ported(config, state), made(config.folded())
    values = folded_values({variable.path: variable.numpy() for variable in backbone.variables})
    for variable in folded.variables:
        variable.assign(values.pop(variable.path))
    assert not values
    for ours, theirs in zip(folded(pixels), backbone(pixels), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("who", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_names_lead_there_and_back(who, kind):
    """Each variable has a name, each name leads to one variable, and a network of these shapes is the same one."""
    config = HGNetV2Config(**SMALL, **KINDS[kind])
    scheme, shapes, names = Scheme("", tuple(BACKBONES[who])), {}, set()
    for variable in made(config).variables:
        name, layout = scheme.torch_name(variable.path)
        assert [path for path, _ in scheme.keras_paths(name)] == [variable.path]
        value = np.random.default_rng(0).normal(size=variable.shape)
        tensor = layout.to_torch(value)
        np.testing.assert_array_equal(layout.read(tensor, tuple(variable.shape)), value)
        shapes[variable.path] = tensor.shape
        names.add(name)
    assert find_hgnet(names) == (who, "")
    assert hgnet_from_tensors(shapes) == config
    assert hgnet_from_config({"backbone_config": hgnet_json(config, 3)}, {}) == config


def test_authors_names():
    """Of a file of Peterande/D-FINE, commit 4a1f73a8."""
    scheme = Scheme("", tuple(BACKBONES["authors"]))
    for path, name in (
        ("stem/stem2a/conv/convolution/kernel", "stem.stem2a.conv.weight"),
        ("stem/stem4/affine/scale", "stem.stem4.lab.scale"),
        ("stage2/downsample/normalization/gamma", "stages.1.downsample.bn.weight"),
        ("stage1/block0/layer2/conv/convolution/kernel", "stages.0.blocks.0.layers.2.conv.weight"),
        ("stage3/block1/layer2/pointwise/convolution/kernel", "stages.2.blocks.1.layers.2.conv1.conv.weight"),
        ("stage4/block0/layer0/conv/normalization/moving_mean", "stages.3.blocks.0.layers.0.conv2.bn.running_mean"),
        ("stage4/block0/layer0/affine/bias", "stages.3.blocks.0.layers.0.conv2.lab.bias"),
        ("stage4/block0/aggregation1/affine/bias", "stages.3.blocks.0.aggregation.1.lab.bias"),
    ):
        assert scheme.torch_name(f"backbone/{path}")[0] == name


@pytest.mark.parametrize("name", ["hgnet-v2-b0", "hgnet-v2-b2", "hgnet-v2-b5"])
def test_published_sizes(pytorch, name):
    for affine in (False, True):
        config = dataclasses.replace(HGNETS[name], learnable_affine=affine)
        count = sum(int(np.prod(variable.shape)) for variable in made(config).trainable_variables)
        assert count == pytorch.call("hgnet:parameters", told(config))
        assert config.title == f"an HGNetV2-{name[-2:].upper()}"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"depths": (1, 1)}, "must name the same stages"),
        ({"stem_channels": (8,)}, "stem_channels must be two numbers"),
        ({"stem_channels": (7, 12)}, "give even numbers"),
        ({"channels": (16, 24, 33, 48)}, "give even numbers"),
        ({"block_layers": 0}, "block_layers must be at least 1"),
        ({"learnable_affine": 1}, "learnable_affine must be True or False"),
        ({"batch_norm": {"stage9": "frozen"}}, "'stage9' is no part of this backbone"),
    ],
)
def test_configurations_that_cannot_be(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        HGNetV2Config(**SMALL | changes)


def test_parts_are_trained_apart():
    config = HGNetV2Config(**SMALL, batch_norm={"stem": "frozen"})
    backbone = made(config)
    assert list(backbone.parts) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    is_trained = {variable.path for variable in backbone.trainable_variables if "normalization" in variable.path}
    assert is_trained
    assert not any("/stem/" in path for path in is_trained)
