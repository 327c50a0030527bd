"""Image tokenizers: convolutional encoder and decoder around finite scalar quantisation.

Pictures are f32 RGB `[B, 3, H, W]` in 0..1; tokens are int64 `[B, (H/8)·(W/8)]`, row by row.
"""
