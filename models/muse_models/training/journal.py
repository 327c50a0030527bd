"""Tells how a run goes: a line every few seconds, and TensorBoard events."""

import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Prints means over the steps since the last line, samples a second, and the time left."""

    def __init__(self, folder: Path, name: str, every_seconds: float = 10.0):
        self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)
        self._name = name
        self._every = every_seconds
        self._since = time.monotonic()
        self._seen: int | None = None
        self._sums: dict[str, float] = {}
        self._count = 0

    def say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self._name}: {line}", flush=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes and prints values at once."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self.say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def step(self, step: int, seen: int, remaining_seconds: float, values: dict[str, float]) -> None:
        """Counts one step; `seen` is samples so far, `values` this step's figures."""
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        now = time.monotonic()
        if self._seen is None:
            self._seen, self._since = seen, now
            return
        if now - self._since < self._every:
            return
        means = {key: total / self._count for key, total in self._sums.items()}
        speed = (seen - self._seen) / (now - self._since)
        for key, value in {**means, "samples_per_second": speed}.items():
            self._writer.add_scalar(f"train/{key}", value, step)
        figures = "  ".join(f"{key} {value:.4g}" for key, value in means.items())
        self.say(f"step {step}  seen {seen}  {speed:.0f}/s  {figures}  left {remaining_seconds / 60:.1f} min")
        self._since, self._seen, self._sums, self._count = now, seen, {}, 0
