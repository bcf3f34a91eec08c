"""The reference of the tests: PyTorch, transformers and a plain DETR, in a process of their own.

Nothing else in `tests/` imports torch or transformers: TensorFlow imported before triton 3.7 ends a process by a
segmentation fault, and transformers imports triton, as a CUDA build of torch may. Tests describe a model by
`descriptions`, call a function of the other modules by name through `process.PyTorch`, and get arrays and files.

The modules know nothing of the package under test, nor of Keras.
"""
