"""From checkpoints to a bundle: ONNX graphs, weights stored small, the manifest, and the comparison with PyTorch.

`docs/bundle.md` is the contract: names, shapes and types of the nine graphs, and the manifest's keys.
"""
