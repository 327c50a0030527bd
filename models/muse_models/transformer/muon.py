"""Muon (Jordan et al., 2024): momentum whose every matrix is made orthogonal before it is applied.

PyTorch has one too; it multiplies in bf16 whatever the device, which CPUs without such instructions do a hundred times
slower than f32. This one multiplies in the type that the run computes products in.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pushes singular values towards 1 fastest (Jordan et al.)."""
_ITERATIONS = 5
_MATCHED_RMS = 0.2
"""Root mean square of an AdamW update, to which updates are scaled (Liu et al., 2025, arXiv 2502.16982 §2.2)."""


def orthogonalised(matrix: Tensor, products: torch.dtype | None = None) -> Tensor:
    """About U·Vᵀ of `matrix` [rows, columns] = U·S·Vᵀ: singular values end within some 30 % of 1.

    `products` is the type to multiply in; None keeps the matrix's own.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    values = (matrix.T if tall else matrix).to(products or matrix.dtype)
    values = values / (values.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = values @ values.T
        values = a * values + (b * gram + c * gram @ gram) @ values
    return (values.T if tall else values).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices alone."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        weight_decay: float,
        momentum: float = 0.95,
        products: torch.dtype | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})
        self._products = products

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(parameter.grad.lerp(momentum, group["momentum"]), self._products)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * _MATCHED_RMS * max(parameter.shape) ** 0.5)
