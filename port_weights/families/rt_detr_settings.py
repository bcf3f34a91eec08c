"""What RT-DETR's settings are called: in `config.json`, in its authors' YAML files, and here."""

from __future__ import annotations

FIELDS = {  # of config.json, and of ours
    "d_model": "d_model",
    "num_queries": "num_queries",
    "encoder_hidden_dim": "encoder_dim",
    "encoder_ffn_dim": "encoder_ffn_dim",
    "encoder_layers": "encoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "encode_proj_layers": "attended_levels",
    "encoder_activation_function": "encoder_activation",
    "activation_function": "activation_function",
    "hidden_expansion": "expansion",
    "decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_attention_heads",
    "decoder_ffn_dim": "decoder_ffn_dim",
    "decoder_activation_function": "decoder_activation",
    "decoder_n_points": "decoder_points",
    "num_feature_levels": "num_feature_levels",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "num_denoising": "num_denoising",
    "label_noise_ratio": "label_noise_ratio",
    "box_noise_scale": "box_noise_scale",
    "learn_initial_query": "learned_content",
    "auxiliary_loss": "auxiliary_outputs",
}
CRITERION = {
    "matcher_class_cost": "cost_class",
    "matcher_bbox_cost": "cost_bbox",
    "matcher_giou_cost": "cost_giou",
    "weight_loss_vfl": "class_loss_coefficient",
    "weight_loss_bbox": "bbox_loss_coefficient",
    "weight_loss_giou": "giou_loss_coefficient",
    "focal_loss_alpha": "focal_alpha",
    "focal_loss_gamma": "focal_gamma",
}
# What is one thing here, and may be another in a config.json.
ALWAYS = {
    "normalize_before": False,
    "with_box_refine": True,
    "use_focal_loss": True,
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "positional_encoding_temperature": 10000,
}
# Of the matching, which changes no output.
OF_MATCHING = {"matcher_alpha": 0.25, "matcher_gamma": 2.0}
# The same in the authors' YAML files, by their parts.
ARGUMENTS = {
    "HybridEncoder.nhead": "encoder_attention_heads",
    "HybridEncoder.enc_act": "encoder_activation",
    "HybridEncoder.act": "activation_function",
    "HybridEncoder.expansion": "expansion",
    "RTDETRTransformer.nhead": "decoder_attention_heads",
    "RTDETRTransformer.activation": "decoder_activation",
    "RTDETRTransformer.num_queries": "num_queries",
    "RTDETRTransformer.num_denoising": "num_denoising",
    "RTDETRTransformer.label_noise_ratio": "label_noise_ratio",
    "RTDETRTransformer.box_noise_scale": "box_noise_scale",
}
# The authors' one, and those of ours that it is.
DROPOUT, DROPOUTS = "RTDETRTransformer.dropout", ("dropout", "attention_dropout", "activation_dropout")
ENCODED, EVALUATED = "HybridEncoder.use_encoder_idx", "RTDETRTransformer.eval_idx"
ARGUMENTS_OF_LOSS = {
    "SetCriterion.weight_dict.loss_vfl": "class_loss_coefficient",
    "SetCriterion.weight_dict.loss_bbox": "bbox_loss_coefficient",
    "SetCriterion.weight_dict.loss_giou": "giou_loss_coefficient",
    "SetCriterion.alpha": "focal_alpha",
    "SetCriterion.gamma": "focal_gamma",
    "SetCriterion.matcher.weight_dict.cost_class": "cost_class",
    "SetCriterion.matcher.weight_dict.cost_bbox": "cost_bbox",
    "SetCriterion.matcher.weight_dict.cost_giou": "cost_giou",
}
