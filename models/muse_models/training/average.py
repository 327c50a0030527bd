"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class Average:
    """A copy of `model` whose weights follow it with `decay` a step (less in the first steps)."""

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        averaged = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        current = [value for value in model.state_dict().values() if value.is_floating_point()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
