"""Checkpoints that a killed process cannot tear."""

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` beside `path` and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(f".partial-{os.getpid()}")
    torch.save(state, staging)
    os.replace(staging, path)


def load(path: Path) -> dict[str, Any] | None:
    """The saved state on the CPU, or None when there is none yet."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
