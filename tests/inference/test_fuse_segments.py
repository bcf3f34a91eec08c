"""Segments of one label made one, and masks of objects laid over each other."""

import numpy as np
import pytest

from tfdetr_keras.evaluation.panoptic_results import number_segments
from tfdetr_keras.inference.segments import fuse_segments, lay_masks, post_process_panoptic


def random_segments(rng, labels=4):
    """A map of rectangles, ids in any order and with gaps; 0 and -1 are no segment."""
    segmentation = rng.choice([0, -1], (20, 30)).astype(np.int32)
    segments_info = []
    for number in rng.permutation(np.arange(1, 12))[: rng.integers(0, 9)]:
        top, left = rng.integers(0, 15), rng.integers(0, 25)
        segmentation[top : top + 5, left : left + 5] = number
    for number in rng.permutation(np.unique(segmentation[segmentation > 0])):
        score = round(float(rng.random()), 6)
        entry = {"id": int(number), "label_id": int(rng.integers(labels)), "was_fused": False, "score": score}
        segments_info.append(entry)
    return segmentation, segments_info


def test_segments_of_a_label_become_one():
    fused = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        segmentation, segments_info = random_segments(rng)
        before, label_ids = segmentation.copy(), set(rng.permutation(4)[: rng.integers(0, 4)].tolist())
        found = fuse_segments(segmentation, segments_info, label_ids)
        np.testing.assert_array_equal(segmentation, before)
        number_segments(found, "found", 4)  # its ids are those of the map, and each has one label
        assert found["segmentation"].dtype == np.int32
        np.testing.assert_array_equal(found["segmentation"] > 0, before > 0)
        np.testing.assert_array_equal(found["segmentation"][before <= 0], before[before <= 0])
        entries = found["segments_info"]
        assert len({entry["id"] for entry in entries}) == len(entries)
        for label in range(4):
            own = [entry for entry in segments_info if entry["label_id"] == label]
            its = [entry for entry in entries if entry["label_id"] == label]
            if label not in label_ids:
                assert its == own
                for entry in own:
                    np.testing.assert_array_equal(found["segmentation"] == entry["id"], before == entry["id"])
            elif own:
                [whole] = its
                score = max(entry["score"] for entry in own)
                assert whole == {"id": own[0]["id"], "label_id": label, "was_fused": True, "score": score}
                of_label = np.isin(before, [entry["id"] for entry in own])
                np.testing.assert_array_equal(found["segmentation"] == whole["id"], of_label)
                fused += len(own) - 1
            else:
                assert not its
        assert fuse_segments(**found, label_ids=label_ids)["segments_info"] == entries
    assert fused > 20


def test_what_transformers_mixes_up_is_told():
    """Its ids count on from a fused segment: here stuff, two things, the stuff again, and one more thing."""
    labels = [1, 0, 0, 1, 0]
    logits, masks = np.full((1, 5, 3), -10.0), np.full((1, 5, 4, 10), -10.0)
    for query, label in enumerate(labels):
        logits[0, query, label] = 10
        masks[0, query, :, 2 * query : 2 * query + 2] = 10
    outputs = {"logits": logits, "pred_masks": masks}
    [whole] = post_process_panoptic(outputs)
    fused = fuse_segments(whole["segmentation"], whole["segments_info"], {1})
    assert fused["segmentation"][0].tolist() == [1, 1, 2, 2, 3, 3, 1, 1, 5, 5]
    assert [(entry["id"], entry["label_id"]) for entry in fused["segments_info"]] == [(1, 1), (2, 0), (3, 0), (5, 0)]
    [mixed] = post_process_panoptic(outputs, label_ids_to_fuse={1})
    assert mixed["segmentation"][0].tolist() == [1, 1, 2, 2, 3, 3, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"two segments have the id 2, of the labels 0 and 0, .* fuse nothing"):
        fuse_segments(mixed["segmentation"], mixed["segments_info"], {1})
    mixed["segments_info"][-1]["label_id"] = 1
    with pytest.raises(ValueError, match="two segments have the id 2, of the labels 0 and 1"):
        fuse_segments(mixed["segmentation"], mixed["segments_info"], {0, 1})


def test_the_surest_mask_lies_on_top():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        count = rng.integers(0, 8)
        masks = rng.random((count, 3, 4)) < 0.4
        scores, labels = rng.random(count).astype(np.float32), rng.integers(0, 3, count)
        found = lay_masks({"masks": masks, "scores": scores, "labels": labels, "boxes": np.zeros((count, 4))})
        for place in np.ndindex(3, 4):
            rows = [row for row in range(count) if masks[(row, *place)]]
            expected = max(rows, key=lambda row: scores[row]) + 1 if rows else 0
            assert found["segmentation"][place] == expected
        seen = sorted(set(found["segmentation"][found["segmentation"] > 0].tolist()))
        assert [entry["id"] for entry in found["segments_info"]] == seen
        for entry in found["segments_info"]:
            assert entry["label_id"] == labels[entry["id"] - 1]
            assert entry["score"] == scores[entry["id"] - 1]
        number_segments(found, "found")
