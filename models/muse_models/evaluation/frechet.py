"""Fréchet distance between two sets of feature vectors, each taken for a normal distribution (Heusel et al. 2017)."""

import numpy as np


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|μ1 − μ2|² + tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½) of `one` [N, D] and `other` [M, D].

    It grows as N falls, so that only figures with the same N can be compared.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    difference = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # tr (Σ1 Σ2)^½ = tr (Σ1^½ Σ2 Σ1^½)^½, whose matrix is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * product)
