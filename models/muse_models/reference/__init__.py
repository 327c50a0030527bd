"""The decoding algorithm in NumPy, to be read beside the paper and to check the Rust engine against, token by token.

`docs/decoding.md` is the specification of `rng`, `schedule`, `guidance` and `sampler`; `docs/bundle.md` that of
`bundle` and `pipeline`. Nothing here needs PyTorch: models run on ONNX Runtime, one row at a time.
"""
