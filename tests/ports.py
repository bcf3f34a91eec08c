"""The Keras side of a case: its reference's weights in this package's model, and comparisons of the two."""

import keras
import numpy as np
from reference.descriptions import HuggingFace

from port_weights import load_model
from port_weights.schemes import detect_scheme


def port_of(case, answers):
    """Return the port of a case's reference: by way of the files that `save_pretrained` wrote, or of a `state_dict`."""
    if isinstance(case.reference, HuggingFace):
        return load_model(answers.checkpoint)
    fields = case.reference.fields
    return load_model(answers.arrays("state"), heads=fields["heads"], dilation=fields.get("dilated", False))


def copy_of(model, **options):
    """Return another model of the same class, configuration, loss and weights."""
    copy = type(model)(model.config, model.criterion, name=model.name, **options)
    copy.set_weights(model.get_weights())
    return copy


def gentle(member):
    """Return a member's tiny model with every weight at random, so that queries differ and no term is 0 or 1.

    Unlike the reference's its attention is not sharpened: where sums are added up in another order, little changes.
    """
    keras.utils.set_random_seed(1)
    model, rng = member.new(), np.random.default_rng(0)
    for weight in model.weights:
        values = np.asarray(weight)
        positive = weight.path.endswith(("gamma", "variance"))
        noise = rng.uniform(0.5, 1.5, values.shape) if positive else rng.normal(0, 0.1, values.shape)
        weight.assign(noise if positive else values + noise)
    return model


def weights_of(model):
    """Return the weights by path, without the model's name."""
    return {variable.path.split("/", 1)[1]: np.asarray(variable) for variable in model.weights}


def torch_names(model, names):
    """For each trainable Keras variable `(path, variable, PyTorch name, layout between the two)`.

    Args:
        model: the Keras model.
        names: of PyTorch's tensors.
    """
    scheme = detect_scheme(names)
    for variable in model.trainable_variables:
        path = variable.path.split("/", 1)[1]
        yield path, variable, *scheme.torch_name(path)


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
