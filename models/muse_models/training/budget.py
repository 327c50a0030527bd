"""A learning-rate schedule tied to wall-clock time.

The share of a CPU that a run gets is not known beforehand, so the rate decays over minutes spent and
not over steps: whatever was reached, a run ends on time and fully decayed.
"""

import math
import time


class Budget:
    """Counts minutes over restarts and gives the learning rate for now.

    `minutes` is the whole run's budget, `spent_seconds` what earlier processes of the run used.
    """

    def __init__(self, minutes: float, peak: float, warmup_minutes: float, spent_seconds: float = 0.0):
        self._total = minutes * 60
        self._peak = peak
        self._warmup = warmup_minutes * 60
        self._before = spent_seconds
        self._started = time.monotonic()

    def spent_seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def remaining_seconds(self) -> float:
        return max(0.0, self._total - self.spent_seconds())

    def is_over(self) -> bool:
        return self.spent_seconds() >= self._total

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to 2 % of the peak."""
        spent = self.spent_seconds()
        if spent < self._warmup:
            return self._peak * max(0.02, spent / self._warmup)
        done = min(1.0, (spent - self._warmup) / max(1e-9, self._total - self._warmup))
        return self._peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
