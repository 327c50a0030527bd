"""Makes a bundle whose transformers compute in f16: `python -m muse_models.export.half --bundle DIR --out DIR`.

For GPUs. Reads a finished bundle and rewrites each stage's `condition` and `step` graph so that everything in them is f16 but logits, which
stay f32 for the sampler, and the text that goes in. What the steps take from `condition` is f16 too, half of what it was. All other
files are copied. `half_graph` says what is rewritten.
"""

import sys
from pathlib import Path
from typing import Any

from .half_graph import halved
from .rewriting import rewrite_bundle, run_command

SUFFIX = "-f16"
"""What the version of a bundle gets, so that its pictures can be told from those of the one that it was made from."""

KEPT_F32 = frozenset({"text", "logits"})
"""Inputs and outputs that the engine gives and takes in f32 (docs/bundle.md)."""


def write_half(folder: Path, out: Path) -> None:
    """Writes the bundle in `folder` with transformers in f16 to `out`, which is replaced as a whole.

    Raises as `rewrite_bundle`.
    """
    rewrite_bundle(folder, out, SUFFIX, _transformers, lambda model, beside: halved(model, KEPT_F32, beside))


def _transformers(manifest: dict[str, Any]) -> list[str]:
    return [
        manifest[stage][graph] for stage in ("base", "superres") if stage in manifest for graph in ("condition", "step")
    ]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command("half", str(__doc__), write_half, argv)


if __name__ == "__main__":
    sys.exit(main())
