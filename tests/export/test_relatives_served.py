"""DETR's relatives as SavedModels, in a process that has TensorFlow alone: they find what Keras finds."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from test_saved_model import ALONE

import tfdetr_keras as td
from tfdetr_keras import export

SIZE, CANVAS = (96, 128), (128, 128)
BACKBONE = td.ResNetConfig("basic", (1, 1, 1, 1), (16, 16, 24, 32), 16)
SMALL = {
    "backbone": BACKBONE,
    "num_classes": 4,
    "num_queries": 30,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
RELATIVES = {
    "table-transformer": td.TableTransformerConfig(**SMALL),
    "segmentation": td.SegmentationConfig(**SMALL),
    "conditional": td.ConditionalDETRConfig(**SMALL),
}


def random_model(kind):
    """With every weight at random, so that queries differ and no term is 0 or 1."""
    keras.utils.set_random_seed(1)
    config = RELATIVES[kind]
    model = td.models.model_class(config)(config)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        values = np.asarray(weight)
        positive = weight.path.endswith(("gamma", "variance"))
        noise = rng.uniform(0.5, 1.5, values.shape) if positive else rng.normal(0, 0.1, values.shape)
        weight.assign(noise if positive else values + noise)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("pad_to", [None, CANVAS])
@pytest.mark.parametrize("kind", RELATIVES)
def test_a_saved_model(kind, pad_to, photographs, tmp_path):
    images = photographs[1][:2]
    model = random_model(kind)
    rule = "table" if kind == "table-transformer" else "huggingface"
    folder = export.saved_model(model, tmp_path / "served", SIZE, pad_to, size_rule=rule)
    np.savez(tmp_path / "images.npz", *images)
    arguments = [str(folder), str(tmp_path / "images.npz"), str(tmp_path / "found.npz")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALONE), *arguments],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    records, _ = td.data.load_images(photographs[0][:2])
    batches = td.data.prepare(records, 1, size=SIZE, pad_to=pad_to, size_rule=rule)
    for place, (image, (inputs, _)) in enumerate(zip(images, batches, strict=True)):
        outputs = model({name: value.numpy() for name, value in inputs.items()})
        [wanted] = td.post_process(outputs, [image.shape[:2]], -1, model.config.classification)
        order = np.argsort(-wanted["scores"], kind="stable")
        np.testing.assert_allclose(found[f"{place} scores"], wanted["scores"][order], rtol=0, atol=1e-5)
        boxes = np.clip(wanted["boxes"][order], 0, image.shape[1::-1] * 2)
        np.testing.assert_allclose(found[f"{place} boxes"], boxes, rtol=0, atol=0.05)
        np.testing.assert_array_equal(found[f"{place} labels"], wanted["labels"][order])
        assert (f"{place} masks" in found) == (kind == "segmentation")
        if kind == "segmentation":
            masks = 1 / (1 + np.exp(-np.asarray(outputs["pred_masks"])[0]))
            np.testing.assert_allclose(found[f"{place} masks"], masks[order], rtol=0, atol=1e-4)
            mask = inputs["pixel_mask"].numpy()[0]
            np.testing.assert_allclose(found[f"{place} extents"], [mask[:, 0].mean(), mask[0].mean()], atol=1e-6)


@pytest.mark.parametrize("kind", RELATIVES)
def test_batch_normalisation_is_folded(kind, photographs):
    model = random_model(kind)
    records, _ = td.data.load_images(photographs[0][:1])
    [(inputs, _)] = td.data.prepare(records, 1, size=SIZE)
    folded = model.fold()
    assert type(folded) is type(model)
    for name, value in model(inputs).items():
        np.testing.assert_allclose(folded(inputs)[name], value, rtol=0, atol=1e-4)


def test_rules_of_sizes(tmp_path):
    with pytest.raises(
        ValueError, match='size_rule="facebook" works in TensorFlow only: use "huggingface", which differs'
    ):
        export.onnx(random_model("conditional"), tmp_path / "model.onnx", SIZE, size_rule="facebook")
    with pytest.raises(ValueError, match=r"size_rule must be one of .*, not 'ours'"):
        export.saved_model(random_model("conditional"), tmp_path / "served", SIZE, size_rule="ours")
