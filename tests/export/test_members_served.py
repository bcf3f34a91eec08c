"""Every member of the family as a SavedModel, in a process that has TensorFlow alone: it finds what Keras finds."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from members import MEMBERS, of_members
from ports import gentle
from test_saved_model import ALONE

import tfdetr_keras as td
from tfdetr_keras import export

SIZE, CANVAS = (96, 128), (128, 128)


@pytest.mark.slow
@pytest.mark.parametrize("pad_to", [None, CANVAS])
@of_members()
def test_a_saved_model_finds_what_keras_finds(member, pad_to, photographs, tmp_path):
    model = gentle(member)
    images = photographs[1][:2]
    rule = "table" if member.name == "TableTransformer" else "huggingface" if member.case.knows_padding else "stretch"
    if pad_to and rule == "stretch":
        pytest.skip("it takes no padding")
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
    options = {"size": SIZE, "pad_to": pad_to, "size_rule": rule}
    batches = td.data.prepare(records, 1, preprocessing=model.preprocessing, **options)
    for place, (image, (inputs, _)) in enumerate(zip(images, batches, strict=True)):
        outputs = model({name: value.numpy() for name, value in inputs.items()})
        [wanted] = td.post_process(outputs, [image.shape[:2]], -1, model.config.classification)
        order = np.argsort(-wanted["scores"], kind="stable")
        np.testing.assert_allclose(found[f"{place} scores"], wanted["scores"][order], rtol=0, atol=1e-5)
        boxes = np.clip(wanted["boxes"][order], 0, image.shape[1::-1] * 2)
        np.testing.assert_allclose(found[f"{place} boxes"], boxes, rtol=0, atol=0.05)
        np.testing.assert_array_equal(found[f"{place} labels"], wanted["labels"][order])
        assert (f"{place} masks" in found) == member.case.has_masks
        if member.case.has_masks:
            masks = 1 / (1 + np.exp(-np.asarray(outputs["pred_masks"])[0]))
            queries = order
            if model.config.classification != "softmax":  # a query may speak for several classes
                pairs = np.argsort(-np.asarray(outputs["logits"])[0].ravel(), kind="stable")
                queries = pairs[: len(order)] // model.config.num_logits
            np.testing.assert_allclose(found[f"{place} masks"], masks[queries], rtol=0, atol=1e-4)
            mask = inputs["pixel_mask"].numpy()[0]
            np.testing.assert_allclose(found[f"{place} extents"], [mask[:, 0].mean(), mask[0].mean()], atol=1e-6)


def test_rules_of_sizes(tmp_path):
    with pytest.raises(
        ValueError, match='size_rule="facebook" works in TensorFlow only: use "huggingface", which differs'
    ):
        export.onnx(MEMBERS["ConditionalDETR"].new(), tmp_path / "model.onnx", SIZE, size_rule="facebook")
    with pytest.raises(ValueError, match=r"size_rule must be one of .*, not 'ours'"):
        export.saved_model(MEMBERS["ConditionalDETR"].new(), tmp_path / "served", SIZE, size_rule="ours")
