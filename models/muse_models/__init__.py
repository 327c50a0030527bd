"""Training, export and reference code for the models that Muse Serve serves.

Sub-packages: `data` (scenes and captions), `text` (T5 encoder), `tokenizer` (image tokenizers),
`transformer` (base and super-resolution), `training` (what the training commands share),
`export` (ONNX and bundles), `reference` (the sampler in NumPy, without PyTorch).
"""
