"""Makes a bundle whose transformers compute in f16: `python -m muse_models.export.half --bundle DIR --out DIR`.

For GPUs. Reads a finished bundle and rewrites each stage's `condition` and `step` graph so that everything in them is f16 but logits, which
stay f32 for the sampler, and the text that goes in. What the steps take from `condition` is f16 too, half of what it was. All other
files are copied. `half_graph` says what is rewritten.
"""

import argparse
import hashlib
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import onnx

from ..reference.bundle import BundleError
from .half_graph import halved
from .manifest import write_manifest
from .storage import BesideFile

SUFFIX = "-f16"
"""What the version of a bundle gets, so that its pictures can be told from those of the one that it was made from."""

KEPT_F32 = frozenset({"text", "logits"})
"""Inputs and outputs that the engine gives and takes in f32 (docs/bundle.md)."""


def write_half(folder: Path, out: Path) -> None:
    """Writes the bundle in `folder` with transformers in f16 to `out`, which is replaced as a whole.

    Raises `BundleError` or `ValueError` where a graph can't be rewritten.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the bundle that is read")
    manifest = _read_manifest(folder)
    rewritten = [
        manifest[stage][graph] for stage in ("base", "superres") if stage in manifest for graph in ("condition", "step")
    ]
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
        onnx.save(halved(model, KEPT_F32, beside), partial / name)
        onnx.checker.check_model(str(partial / name))
    tables = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    tables["model"] = tables["model"] | {"version": tables["model"]["version"] + SUFFIX}
    write_manifest(partial, tables)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its files checked: what is written gets digests of its own, and must not make a damaged file sound."""
    manifest = tomllib.loads((folder / "bundle.toml").read_text())
    for name, entry in manifest["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise BundleError(f"{name}: not the file that the manifest describes (SHA-256 differs)")
    return manifest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="muse_models.export.half", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to read")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle; replaced")
    arguments = parser.parse_args(argv)
    try:
        write_half(arguments.bundle, arguments.out)
    except (OSError, ValueError, BundleError) as error:
        print(f"half: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
