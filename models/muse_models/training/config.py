"""Reads a part's TOML configuration and finds the work directory."""

import tomllib
from pathlib import Path


def default_work_dir() -> Path:
    """`.train/` at the root of the repository; git ignores it."""
    return Path(__file__).resolve().parents[3] / ".train"


def load_config(path: Path) -> dict:
    """The configuration as nested dictionaries. Raises `tomllib.TOMLDecodeError` on bad TOML."""
    with open(path, "rb") as file:
        return tomllib.load(file)
