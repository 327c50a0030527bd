"""One thread: the models are so small that a second one only waits. And a clock that counts steps."""

import pytest
import torch

from muse_models.training import loop

torch.set_num_threads(1)


class CountedBudget:
    """A budget of one step a minute: a test must not depend on how busy the machine is."""

    def __init__(self, minutes: float, peak: float, warmup_minutes: float, spent_seconds: float) -> None:
        self.minutes, self.peak, self.spent = minutes, peak, spent_seconds / 60

    def is_over(self) -> bool:
        return self.spent >= self.minutes

    def learning_rate(self) -> float:
        self.spent += 1
        return self.peak

    def spent_seconds(self) -> float:
        return self.spent * 60

    def remaining_seconds(self) -> float:
        return (self.minutes - self.spent) * 60


@pytest.fixture
def counted_budget(monkeypatch):
    """Runs of as many steps as they have minutes."""
    monkeypatch.setattr(loop, "Budget", CountedBudget)
