"""`compare` of LW-DETR and RF-DETR, with masks or without: transformers runs the same model, stage by stage."""

import pytest

import tfdetr_keras as td
from port_weights import compare as comparing
from port_weights import export, export_pth
from tfdetr_keras.backbones.lw_vit import LWViTConfig
from tfdetr_keras.models.rf_detr import SMALL

SIDE = 64
LW = LWViTConfig(4, width=48, depth=3, heads=2, windowed=(0,), taps=(1, 2, 3), table_side=16)
IMAGES = td.Preprocessing((SIDE, SIDE), "stretch", multiple_of=16)


DECODER = {name: value for name, value in SMALL.items() if name != "backbone"}
MODELS = {
    "LWDETR": lambda: td.LWDETR(td.LWDETRConfig(LW, preprocessing=IMAGES, **DECODER)),
    "RFDETR": lambda: td.from_pretrained("rf-detr-tiny"),
    "RFDETRForSegmentation": lambda: td.from_preset("rf-detr-seg-tiny"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compare_agrees_stage_by_stage(tmp_path, name):
    model = MODELS[name]()
    export(model, tmp_path / "folder")
    export_pth(model, tmp_path / "model.pth")
    for source in (tmp_path / "folder", tmp_path / "model.pth"):
        rows, origin = comparing.compare(source)
        assert ("transformers itself" in origin) == source.is_dir()
        stages = [row.stage for row in rows]
        assert {"backbone.tap1", "projector.level0", "references", "decoder.layer2", "logits"} <= set(stages)
        assert ("pred_masks" in stages) == model.has_masks
        assert all(row.agrees for row in rows), comparing.table(rows)
