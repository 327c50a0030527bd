"""The optimiser of a transformer: Muon for the matrices of its layers, AdamW for the rest; or AdamW alone.

Muon (Jordan et al., 2024) makes each matrix's update orthogonal. With its steps scaled to the size of AdamW's (Liu et
al., 2025) both share one learning rate and one weight decay. The paper trains with Adafactor, whose point is memory.
"""

from typing import Any

import torch
from torch import nn


class TransformerOptimiser:
    """One or two PyTorch optimisers behind one interface."""

    def __init__(self, model: nn.Module, kind: str, weight_decay: float, betas: tuple[float, float]) -> None:
        if kind not in ("muon", "adamw"):
            raise ValueError(f'optimiser "{kind}" is neither "muon" nor "adamw"')
        matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if kind == "muon" and parameter.ndim == 2 and "layers." in name
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )

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
