"""The loop that every part trains in: resuming, the clock, averages, checkpoints, snapshots, reports.

A part says what one step does and what a report shows (`Task`); a `Run` does the rest. `checkpoint.pt` in the part's
folder is what a killed run goes on from and what the export reads.
"""

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from . import checkpoint
from .average import Average
from .budget import Budget
from .config import default_work_dir, load_config
from .journal import Journal
from .snapshots import Snapshots

SAVE_SECONDS = 120


class Optimiser(Protocol):
    """What a run needs to know of an optimiser."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


class Task(ABC):
    """What is particular to one part. `average` follows `model` and is what is used afterwards."""

    def __init__(self, model: nn.Module, average: Average, optimiser: Optimiser) -> None:
        self.model = model
        self.average = average
        self.optimiser = optimiser

    @abstractmethod
    def step(self, rate: float, run: "Run") -> tuple[int, dict[str, float]]:
        """Changes the model once, with learning rate `rate`. Returns the samples seen and figures for the journal."""

    @abstractmethod
    def report(self, run: "Run", final: bool) -> None:
        """Tells how good the averaged model is on held-out data; `final` at the end of the run."""

    def result(self) -> dict[str, Any]:
        """The weights that others load, as `model` of the checkpoint."""
        return self.average.model.state_dict()

    def more_state(self) -> dict[str, Any]:
        """What the checkpoint must hold beyond the model, its average and the optimiser."""
        return {}

    def load_more_state(self, saved: dict[str, Any]) -> None:
        """The inverse of `more_state`, from the whole checkpoint."""


class Run:
    """One run over all its processes: how far it is, and how much time is left."""

    def __init__(self, config: dict[str, Any], work_dir: Path, minutes: float) -> None:
        """Goes on with the run that `config` names where its checkpoint left off; `minutes` is its time in all."""
        options = config["training"]
        self.config = config
        self.folder = work_dir / config["name"]
        self.minutes = minutes
        self.saved = checkpoint.load(self.folder / "checkpoint.pt")
        if self.saved is not None and "live" not in self.saved:
            raise ValueError(f"{self.folder}/checkpoint.pt holds a finished part to be used, not a run to go on with")
        saved = self.saved or {"step": 0, "seen": 0, "spent_seconds": 0.0}
        self.step, self.seen = saved["step"], saved["seen"]
        self.budget = Budget(minutes, options["learning_rate"], options["warmup_minutes"], saved["spent_seconds"])
        self.journal = Journal(self.folder, config["name"])
        self._snapshots = Snapshots.from_options(self.folder, options)
        self._report_seconds = options.get("report_seconds", 300)
        torch.manual_seed(self.seed)

    @property
    def seed(self) -> int:
        """Another after each restart, so that the same batches do not come again."""
        return self.config["training"]["seed"] + self.step

    def train(self, task: Task) -> None:
        """Steps until the time is over; saves every two minutes, and at the end."""
        if self.saved is not None:
            self._restore(task)
        saved_at = reported_at = time.monotonic()
        while not self.budget.is_over():
            seen, figures = task.step(self.budget.learning_rate(), self)
            task.average.update(task.model)
            self.step += 1
            self.seen += seen
            self.journal.step(self.step, self.seen, self.budget.remaining_seconds(), figures)
            self._snapshots.offer(self.step, task.model)
            now = time.monotonic()
            if now - saved_at > SAVE_SECONDS:
                self._save(task)
                saved_at = now
            if now - reported_at > self._report_seconds:
                task.report(self, final=False)
                reported_at = now
        self._save(task)
        task.report(self, final=True)

    def _save(self, task: Task) -> None:
        checkpoint.save(self.folder / "checkpoint.pt", {
            "model": task.result(), "averaged": task.average.model.state_dict(), "live": task.model.state_dict(),
            "optimiser": task.optimiser.state_dict(), "step": self.step, "seen": self.seen,
            "spent_seconds": self.budget.spent_seconds(), "config": self.config, **task.more_state(),
        })

    def _restore(self, task: Task) -> None:
        saved = self.saved
        task.model.load_state_dict(saved["live"])
        task.average.model.load_state_dict(saved.get("averaged", saved["model"]))
        task.average.updates = self.step
        # A part that was restored from a bundle begins with a fresh optimiser.
        if "optimiser" in saved:
            task.optimiser.load_state_dict(saved["optimiser"])
        task.load_more_state(saved)
        self.saved = None


def command(description: str, train: Callable[[dict[str, Any], Path, float], None]) -> None:
    """The command line that all parts share; `train` gets the configuration, the work directory and the minutes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--budget-minutes", type=float, required=True, help="wall-clock time over all restarts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, help="instead of the configuration's, at its peak")
    parser.add_argument("--device", help="instead of the configuration's")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    for name in ("learning_rate", "device"):
        if getattr(arguments, name) is not None:
            config["training"][name] = getattr(arguments, name)
    train(config, arguments.work_dir, arguments.budget_minutes)
