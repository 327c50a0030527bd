"""Writes a finished bundle again with some of its graphs rewritten; what is not rewritten is copied."""

import argparse
import hashlib
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ..reference.bundle import BundleError
from .manifest import write_manifest
from .storage import BesideFile

Rewrite = Callable[[onnx.ModelProto, BesideFile | None], onnx.ModelProto]
"""Makes a graph of a graph. Initializers in external data have no contents; the file, if there is one, reads them."""


def rewrite_bundle(folder: Path, out: Path, suffix: str, wanted: Callable[[dict[str, Any]], list[str]], rewrite: Rewrite) -> None:
    """Writes the bundle in `folder` to `out`, which is replaced as a whole.

    `wanted` names the graphs' files that `rewrite` gets, by the manifest. The version of the model gets `suffix`, so that its pictures
    can be told from those of the bundle that it was made from. Raises `BundleError` where a file is not what the manifest says, and
    `ValueError` where a graph can't be rewritten.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the bundle that is read")
    manifest = _read_manifest(folder)
    rewritten = wanted(manifest)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in manifest["files"]:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in rewritten:
            shutil.copyfile(folder / name, partial / name)
    for name in rewritten:
        beside = BesideFile(folder / f"{name}.data") if f"{name}.data" in manifest["files"] else None
        model = onnx.load(folder / name, load_external_data=False)
        onnx.save(rewrite(model, beside), partial / name)
        onnx.checker.check_model(str(partial / name))
    tables = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    tables["model"] = tables["model"] | {"version": tables["model"]["version"] + suffix}
    write_manifest(partial, tables)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def run_command(name: str, about: str, write: Callable[[Path, Path], None], argv: list[str] | None) -> int:
    """Runs a command that writes a bundle with `write`, given the folder to read and the new one; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"muse_models.export.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to read")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle; replaced")
    arguments = parser.parse_args(argv)
    try:
        write(arguments.bundle, arguments.out)
    except (OSError, ValueError, BundleError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.2f} MB")
    return 0


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its files checked: what is written gets digests of its own, and must not make a damaged file sound."""
    manifest = tomllib.loads((folder / "bundle.toml").read_text())
    for name, entry in manifest["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise BundleError(f"{name}: not the file that the manifest describes (SHA-256 differs)")
    return manifest
