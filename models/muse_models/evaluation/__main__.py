"""Measures a bundle: `python -m muse_models.evaluation --bundle ../bundles/demo` writes `evaluation.md` and its pictures.

The report goes to `<work-dir>/evaluation/report` unless `--out` names another folder. Generated tokens and the
image-text model are kept in `<work-dir>/evaluation`, beside `figures.json`, so that a second run only measures what changed.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch

from ..reference.bundle import BundleError
from ..training.config import default_work_dir
from . import report
from .run import QUICK, Extent, Options, evaluate
from .standard import NORMALISATIONS, Input, StandardNetworkError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m muse_models.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--out", type=Path, help="folder of evaluation.md and images/evaluation/")
    parser.add_argument("--compare", type=Path, metavar="BUNDLE", help="measure this bundle's tokenizers as well")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.SETTING=VALUE", help="in place of the manifest's default"
    )
    parser.add_argument("--sweeps", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="a tenth of the prompts, for development: figures mean nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fid-weights", type=Path, metavar="FILE", help="Inception, ONNX or TorchScript")
    parser.add_argument("--fid-side", type=int, default=299, metavar="PIXELS")
    parser.add_argument("--fid-normalisation", choices=NORMALISATIONS, default="signed")
    parser.add_argument("--clip-weights", type=Path, metavar="FILE", help="CLIP, ONNX or TorchScript")
    parser.add_argument("--clip-tokenizer", type=Path, metavar="FILE")
    parser.add_argument("--clip-side", type=int, default=224, metavar="PIXELS")
    return parser


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.clip_weights and not arguments.clip_tokenizer:
        parser.error("--clip-weights needs --clip-tokenizer, the tokenizer.json of that model")
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    options = Options(
        bundle=arguments.bundle, work_dir=arguments.work_dir, compare=arguments.compare, overrides=tuple(arguments.set),
        with_sweeps=arguments.sweeps, extent=QUICK if arguments.quick else Extent(), threads=arguments.threads,
        fid_weights=arguments.fid_weights, fid_input=Input(arguments.fid_side, arguments.fid_normalisation),
        clip_weights=arguments.clip_weights, clip_tokenizer=arguments.clip_tokenizer,
        clip_input=Input(arguments.clip_side, "clip"),
    )
    try:
        results = evaluate(options)
    except (BundleError, StandardNetworkError, ValueError, FileNotFoundError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    command = "python -m muse_models.evaluation " + shlex.join(sys.argv[1:])
    out = arguments.out or arguments.work_dir / "evaluation" / "report"
    figures = arguments.work_dir / "evaluation" / "figures.json"
    path = report.write(out, figures, results, command, arguments.quick, (time.monotonic() - started) / 60)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
