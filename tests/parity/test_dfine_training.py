"""D-FINE in training beside transformers' network: stages and statistics, with the same denoising.

Both sides run in float64, but for heads of ours, see `test_rt_detr_training`. transformers' loss is not the authors',
see the tests of `FineGrainedCriterion`; and its denoising boxes are others where corners have crossed, so that the
draws here move both corners of a side into one direction. Measured on a CPU: stages differ by at most 1.9e-6 of their
largest value, logits and boxes by 6.3e-6, statistics by 6.1e-9.
"""

import numpy as np
import pytest
from batches import random_draws, random_targets
from members import CASES
from some_slow import some_slow
from test_rt_detr_training import assert_stages, in_double, statistics_of

NAMES = ("DFINE", "DFINE-plain", "DFINE-two-levels")
STAGE, OUTPUT, STATISTICS = 1e-5, 1e-5, 5e-8


def batch_of(case):
    """Three images, their targets and what denoising draws: a few objects, none, and more than there are queries."""
    fields, rng = case.reference.fields, np.random.default_rng(0)
    queries, classes = fields["num_queries"], len(fields["id2label"])
    rows = queries + 3
    targets = random_targets((4, 0, rows), classes, rows=rows, seed=0)
    draws = random_draws(3, 2 * max(fields["num_denoising"], rows), classes, seed=0)
    draws["sign"][..., 2:] = draws["sign"][..., :2]
    targets["boxes"] = targets["boxes"].astype(np.float64)
    return {"pixel_values": rng.normal(0.5, 0.3, (3, 96, 128, 3))}, targets, draws


@pytest.fixture(scope="module", params=some_slow(NAMES, "DFINE-plain"))
def both(request, port, pytorch, answers):
    case = CASES[request.param]
    model = in_double(case, port)
    batch, targets, draws = batch_of(case)
    stages = model.stages(batch, training=True, targets=targets, denoising=draws)
    theirs = pytorch.call("d_fine:stages_in_training", case.reference, batch, targets, draws)
    return case, model, stages, theirs, answers(case).arrays("state")


def test_every_stage_with_denoising(both):
    case, _, stages, theirs, _ = both
    queries = case.reference.fields["num_queries"]
    of_losses = {"prediction_sets", "references", "bin_values", "reg_scale"}
    assert set(theirs["stages"]) == set(stages) - of_losses
    expected = {
        **theirs["stages"],
        "corners": theirs["stages"]["corners"][:, :, -queries:],
    }  # without denoising queries
    assert_stages(stages, expected, queries, STAGE, OUTPUT)


def test_statistics_of_the_batch(both):
    _, model, _, theirs, state = both
    count, worst = 0, 0.0
    for name, mine, layout, shape in statistics_of(model, state):
        if name in theirs["statistics"]:
            want = layout.read(theirs["statistics"][name], shape)
            worst = max(worst, float((np.abs(mine - want) / (1 + np.abs(want))).max()))
            count += 1
    print("statistics", worst)
    assert worst < STATISTICS
    assert count == len(theirs["statistics"])


def test_the_sets_of_the_loss(both):
    """Of all layers, with what their distances are told from, and the first layer's boxes without distributions."""
    case, model, stages, _, _ = both
    config, sets = model.config, stages["prediction_sets"]
    assert set(sets) == {"encoder", "denoising", "pre", "denoising_pre"}
    numbers = 4 * (config.bins + 1)
    assert stages["corners"].shape == (3, config.decoder_layers, config.num_queries, numbers)
    assert stages["references"].shape == (3, config.num_queries, 4)
    assert stages["bin_values"].shape == (config.bins + 1,)
    slots = sets["denoising"]["logits"].shape[2]
    assert sets["denoising"]["corners"].shape == (3, config.decoder_layers, slots, numbers)
    assert sets["denoising"]["references"].shape == (3, slots, 4)
    np.testing.assert_array_equal(stages["references"], stages["pre.boxes"][:, slots:])
    np.testing.assert_array_equal(sets["pre"]["logits"][:, 0], stages["pre.logits"][:, slots:])
    np.testing.assert_array_equal(sets["denoising_pre"]["pred_boxes"][:, 0], stages["pre.boxes"][:, :slots])
    for name in ("objects", "query_mask"):
        np.testing.assert_array_equal(sets["denoising_pre"][name], sets["denoising"][name])
    np.testing.assert_array_equal(sets["denoising_pre"]["queries"], sets["denoising"]["queries"][:, :1])
    assert float(stages["reg_scale"]) == case.reference.fields.get("reg_scale", 4.0)
