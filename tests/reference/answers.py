"""All that the common tests ask of one PyTorch model, in one folder, so that it is computed once and kept."""

import numpy as np

from reference import models, stages, training
from reference.descriptions import HuggingFace


def write(description, folder, batches, training_batch, loss, in_double):
    """Write what a model is and computes.

    Into `folder/checkpoint` what `save_pretrained` writes, of a model of transformers; and into `folder/*.npz` arrays
    by name: `state` (of `state_dict()`), `stages0`, … of each batch, `losses` and `gradients`.

    Args:
        description: of the model.
        folder: exists, and is empty.
        batches: inputs whose stages are wanted.
        training_batch: (inputs, targets) whose losses and gradients are wanted; or None.
        loss: as for `losses.of_layers`.
        in_double: whether the gradients are computed in float64.
    """
    if isinstance(description, HuggingFace):
        models.save(description, folder / "checkpoint")
    found = {"state": models.state(description)}
    for place, batch in enumerate(batches):
        found[f"stages{place}"] = stages.of_batch(description, batch)
    if training_batch is not None:
        inputs, targets = training_batch
        if in_double:
            inputs = {**inputs, "pixel_values": inputs["pixel_values"].astype(np.float64)}
        found["losses"], found["gradients"] = training.gradients(description, inputs, targets, loss)
    for name, tensors in found.items():
        np.savez(folder / f"{name}.npz", **{key: np.asarray(tensor.detach()) for key, tensor in tensors.items()})
