"""Weights between PyTorch checkpoints and Keras models, in both directions."""
