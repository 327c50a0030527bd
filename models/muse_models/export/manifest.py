"""Writes `bundle.toml`."""

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA = 1


def write_manifest(folder: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Writes `bundle.toml` into `folder` from `tables` (`model`, `text`, `base`, …), and lists all other files there.

    A dictionary inside a table becomes a sub-table.
    """
    lines = [f"schema = {SCHEMA}", ""]
    for name, table in tables.items():
        lines += _table(name, table)
    lines.append("[files]")
    for path in sorted(folder.iterdir()):
        if path.name != "bundle.toml":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f'"{path.name}" = {{ sha256 = "{digest}", size = {path.stat().st_size} }}')
    (folder / "bundle.toml").write_text("\n".join(lines) + "\n")


def _table(name: str, table: dict[str, Any]) -> list[str]:
    lines = [f"[{name}]"]
    lines += [f"{key} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    lines.append("")
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _table(f"{name}.{key}", value)
    return lines


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # Strings and booleans are written in TOML as in JSON; a float keeps its point, and TOML needs one.
    return json.dumps(value, ensure_ascii=False)
