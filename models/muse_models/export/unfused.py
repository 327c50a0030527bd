"""Makes a bundle whose attention is standard ONNX: `python -m muse_models.export.unfused --bundle DIR --out DIR`.

For providers that lack ONNX Runtime's own attention, above all OpenVINO, which then computes each graph as a whole. Reads a finished
bundle and rewrites the text encoder and each stage's `condition` and `step` graph; other files are copied. `unfused_graph` says what is rewritten.
"""

import sys
from pathlib import Path
from typing import Any

from .rewriting import rewrite_bundle, run_command
from .unfused_graph import unfused

SUFFIX = "-unfused"
"""What the version of a bundle gets: sums are in another order, and a picture may differ."""


def write_unfused(folder: Path, out: Path) -> None:
    """Writes the bundle in `folder` with unfused attention to `out`, which is replaced as a whole.

    Raises as `rewrite_bundle`.
    """
    rewrite_bundle(folder, out, SUFFIX, _attending, lambda model, _: unfused(model))


def _attending(manifest: dict[str, Any]) -> list[str]:
    stages = [manifest[stage] for stage in ("base", "superres") if stage in manifest]
    return [manifest["text"]["encoder"], *(stage[graph] for stage in stages for graph in ("condition", "step"))]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command("unfused", str(__doc__), write_unfused, argv)


if __name__ == "__main__":
    sys.exit(main())
