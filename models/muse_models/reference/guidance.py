"""Classifier-free guidance with the paper's t (Muse §2.7), in f32."""

import numpy as np


def weight(guidance: float, guidance_schedule: str, step: int, steps: int) -> np.float32:
    """t of this step: constant, or rising linearly from 0 at the first step to `guidance` at the last."""
    if guidance_schedule == "constant" or steps == 1:
        return np.float32(guidance)
    if guidance_schedule != "linear":
        raise ValueError(f'guidance schedule "{guidance_schedule}" is neither "linear" nor "constant"')
    return np.float32(guidance) * (np.float32(step) / np.float32(steps - 1))


def guided(conditional: np.ndarray, unconditional: np.ndarray, t: np.float32) -> np.ndarray:
    """`(1 + t) l_c - t l_u`, each operation rounded to f32."""
    return (np.float32(1) + t) * conditional - t * unconditional
