"""Conditional DETR: where it starts, any size, and its attention."""

import dataclasses

import keras
import numpy as np
import pytest
from small_model import CONFIG

from tfdetr_keras.models import ConditionalDETR, ConditionalDETRConfig

pytestmark = pytest.mark.member(name="ConditionalDETR")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return ConditionalDETR(
        ConditionalDETRConfig(**{field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)})
    )


@pytest.fixture
def batch(make_batch):
    return make_batch(height=64, width=96)


def test_it_starts_with_rare_classes_and_boxes_at_its_reference_points(model, batch):
    outputs = model(batch[0])
    bias = np.asarray(model.class_head.bias)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 0.01, rtol=1e-5)
    points = model.decoder._points(model.query_embedding(np.arange(5)))["points"]
    np.testing.assert_allclose(outputs["pred_boxes"][0, :, :2], points, atol=1e-5)
    np.testing.assert_allclose(outputs["pred_boxes"][0, :, 2:], 0.5)


@pytest.mark.parametrize(("height", "width"), [(33, 65), (64, 40)])
def test_outputs_of_any_size_are_finite(model, make_batch, height, width):
    inputs, _ = make_batch(3, height, width)
    assert all(np.isfinite(value).all() for value in model(inputs).values())


def test_attention_to_the_image_sums_to_one(model, batch):
    stages = model.stages(batch[0], attention=True)
    for layer in range(2):
        np.testing.assert_allclose(np.sum(stages[f"decoder.layer{layer}.attention"], axis=-1), 1, atol=1e-5)
