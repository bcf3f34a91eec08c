"""PyTorch's side of porting, which runs in a process of its own and imports neither Keras nor TensorFlow.

TensorFlow imported before triton, which CUDA builds of torch bring and transformers imports, ends the process by a
segmentation fault. So a process that holds TensorFlow imports no torch; it asks one that does (`process.run`).
"""

# The files that the two processes leave for each other in a folder: named arrays.
TENSORS, BATCH, STAGES = "tensors.safetensors", "batch.safetensors", "stages.safetensors"
