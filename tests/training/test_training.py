"""Fitting real photographs: COCO128 with its crowds, empty images, sparse category ids and varying sizes."""

import keras
import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td

SIZE = (320, 320)
BATCH_SIZE = 4


@pytest.mark.slow
def test_fits_coco128_and_draws_what_it_sees(coco128, tmp_path):
    keras.utils.set_random_seed(0)
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations" / "instances_train2017.json")
    batches = td.data.prepare(records, BATCH_SIZE, training=True, size=SIZE)
    inputs, targets = next(iter(batches))
    assert np.asarray(inputs["pixel_mask"]).min() == 0  # this batch has padding

    model = td.DETR.from_preset("detr-resnet-18", id2label=dict(enumerate(names)))
    model.compile(optimizer=keras.optimizers.AdamW(1e-4, weight_decay=1e-4, global_clipnorm=0.1))
    history = model.fit(batches, epochs=2, verbose=2).history

    assert np.isfinite(history["loss"]).all()
    assert history["loss"][1] < history["loss"][0]

    two = list(records.take(2).as_numpy_iterator())
    (inputs, targets), *_ = td.data.prepare(records.take(2), 2, size=SIZE)
    detections = td.post_process(model.predict_on_batch(inputs), targets["orig_size"], threshold=0.0)
    picture = tmp_path / "predictions.png"
    td.visualize.draw_detections(
        [record["image"] for record in two], detections, names, picture, ground_truth=two, threshold=0.1
    )
    with Image.open(picture) as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 1000  # photographs, not a blank page
