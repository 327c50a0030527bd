"""The masked transformers: text to base tokens, and base tokens with text to super-resolution tokens.

Tokens are int64 `[B, S]`, row by row from the top left; S is the number of cells of a stage's grid. A masked position
holds the mask id. Text is the frozen encoder's embedding `[B, L, D]` with its mask `[B, L]` (1 = token, 0 = padding).
"""
