"""Fetches the npm packages that the data is made from, through the ordinary npm client."""

import json
import subprocess
import tarfile
from pathlib import Path

ICONS = ("@iconify-json/fluent-emoji-flat", "1.2.6")
LABELS = ("emojibase-data", "17.0.0")


def fetch(package: tuple[str, str], work_dir: Path) -> Path:
    """Returns the folder with the unpacked package, fetching it with `npm pack` when it is not there.

    Raises `subprocess.CalledProcessError` when npm cannot get it.
    """
    name, version = package
    folder = work_dir / "packages" / f"{name.replace('/', '-').lstrip('@')}-{version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{name}@{version}"],
        cwd=folder.parent, check=True, capture_output=True, text=True,
    )
    archive = folder.parent / packed.stdout.split()[-1]
    staging = folder.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        tar.extractall(staging, filter="data")
    (staging / "package").rename(folder)
    staging.rmdir()
    archive.unlink()
    return folder


def icon_set(work_dir: Path) -> dict:
    """The icon set in Iconify's JSON form: `icons[name].body` is SVG without its outer element."""
    return json.loads((fetch(ICONS, work_dir) / "icons.json").read_text())


def emoji_labels(work_dir: Path) -> list[dict]:
    """English label, tags, group and subgroup of each emoji."""
    return json.loads((fetch(LABELS, work_dir) / "en" / "data.json").read_text())
