"""A classification is one object: its selections agree, and one of somebody's own goes through matching and loss."""

import keras
import numpy as np
import pytest

import tfdetr_keras as td
from tfdetr_keras.matching import Focal, Softmax
from tfdetr_keras.matching.classification import classification_named


@pytest.mark.parametrize("kind", [Softmax(), Focal()])
def test_what_is_ranked_in_a_graph_is_what_post_processing_selects(kind):
    logits = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    scores, labels, queries = (keras.ops.convert_to_numpy(one) for one in kind.ranked(logits, top_k=9))
    for place, (score, label, query) in enumerate(zip(*kind.confident(logits, top_k=9), strict=True)):
        order = np.argsort(-score, kind="stable")
        np.testing.assert_allclose(scores[place], score[order], rtol=1e-6)
        np.testing.assert_array_equal(labels[place], label[order])
        np.testing.assert_array_equal(queries[place], query[order])


def test_names_are_short_for_objects():
    assert classification_named("focal") == Focal()
    assert classification_named(Softmax()) == Softmax() != Focal()
    assert td.SetCriterion(classification=Focal()) == td.SetCriterion(classification="focal")
    assert Softmax().num_logits(4) == 5
    assert Focal().num_logits(4) == 4
    for wrong in ("sigmoid", None, 3, ["focal"]):
        with pytest.raises(
            ValueError,
            match=r"classification must be one of \('softmax', 'focal', 'varifocal', 'match.*', 'iou_aware'\), not ",
        ):
            td.SetCriterion(classification=wrong)


@keras.saving.register_keras_serializable(package="own")
class Sharper(Softmax):
    """The same, with logits that count for more."""

    name = "sharper"

    def __init__(self, factor=2.0):
        self.factor = factor

    def loss(self, logits, classes, num_boxes, weighting):
        return super().loss(self.factor * logits, classes, num_boxes, weighting)

    def get_config(self):
        return {"factor": self.factor}


def test_one_of_somebodys_own():
    rng = np.random.default_rng(0)
    outputs = {
        "logits": rng.normal(size=(2, 6, 4)).astype("f"),
        "pred_boxes": rng.uniform(0.2, 0.4, (2, 6, 4)).astype("f"),
    }
    targets = {"labels": np.array([[0, 2], [1, -1]]), "boxes": rng.uniform(0.2, 0.4, (2, 2, 4)).astype("f")}
    own, usual = td.SetCriterion(classification=Sharper(3.0), cost_class=0.0), td.SetCriterion(cost_class=0.0)
    expected = usual(outputs | {"logits": 3 * outputs["logits"]}, targets)
    np.testing.assert_allclose(own(outputs, targets)["loss_ce"], expected["loss_ce"], rtol=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(own))
    assert again.classification.factor == 3.0
    assert again.has_no_object_class
