"""Scenes with captions, made from an openly licensed icon set, and the arrays that training reads.

Everything lives in the work directory:

    packages/            unpacked npm packages
    sprites.npz          every icon rasterised once, natural and in every colour
    scenes/images.npy    uint8 [N, 128, 128, 3]  RGB pictures; the base stage sees them halved
    scenes/scenes.jsonl  one line a picture: its items and background
    tokens/base.npy      int16  [M, 64]   base tokens, row by row from the top left
    tokens/superres.npy  int16  [M, 256]  super-resolution tokens of the same pictures
    tokens/text_ids.npy  uint16 [M, 32]   caption as text tokens, `</s>` at its end, then padding 0
    tokens/captions.jsonl  the M captions, one JSON string a line
    tokens/evaluation/   the same four files for compositions that are never trained on

A picture stands in `tokens/` several times, each with another wording (M = N × wordings).
Row `scene · wordings + k` is wording `k`; the first wording is the plain one. Each file is written under
a temporary name and renamed when complete, so that a file that is there is whole.
"""
