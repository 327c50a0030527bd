"""The optimiser of a transformer: Muon for the matrices of its layers and AdamW for the rest; or AdamW; or Adafactor.

Muon's steps are scaled to the size of AdamW's, so that both share one learning rate and one weight decay. Adafactor is
the paper's, whose point is memory: it keeps a row and a column of second moments for each matrix, and no momentum. Its
learning rate is relative to the size of what it changes, and takes a configuration of its own.
"""

from typing import Any

import torch
from torch import nn

from .muon import Muon

KINDS = ("muon", "adamw", "adafactor")


class TransformerOptimiser:
    """One or two PyTorch optimisers behind one interface."""

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        weight_decay: float,
        betas: tuple[float, float],
        products: torch.dtype | None = None,
    ) -> None:
        """`products` is the type that Muon multiplies in (None: that of the weights)."""
        if kind not in KINDS:
            raise ValueError(f'optimiser "{kind}" is none of {", ".join(KINDS)}')
        matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if kind == "muon" and parameter.ndim == 2 and "layers." in name
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        self._parts: list[torch.optim.Optimizer]
        if kind == "adafactor":
            # `betas` are AdamW's: Adafactor's second moment forgets by a schedule, and it has no first.
            self._parts = [torch.optim.Adafactor(others, lr=0.0, weight_decay=weight_decay)]
        else:
            self._parts = [torch.optim.AdamW(others, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)]
        if matrices:
            self._parts.append(Muon(matrices, weight_decay, products=products))

    def step(self, learning_rate: float) -> None:
        """Applies the gradients with `learning_rate` and clears them."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of the parts, in order."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of `state_dict`."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
