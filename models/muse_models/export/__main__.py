"""Exports a bundle: `python -m muse_models.export --out ../bundles/demo`.

Takes what training left in the work directory; each part can be named apart. A part may be another's: `--text` a folder
with a T5 encoder of Hugging Face, the others checkpoints of lucidrains' muse-maskgit-pytorch; docs/bundle.md tells how.
`--random` takes random weights for all parts that are not named, with the shapes of `configs/`: a bundle to measure
speed on before anything is trained. Prints size and difference from PyTorch for every graph, and fails if one is
further off than rounding explains. `--variants` writes the bundle three times, with f32, f16 and int8 weights, and a
table of their differences.
"""

import argparse
import sys
from pathlib import Path

import torch

from ..training.config import default_work_dir, load_config
from .bundle import Writing, write_bundle
from .checkpoints import Sources, gather, is_own, load_text_tokenizer, text_tokenizer_beside
from .storage import EXTERNAL_ABOVE, PRECISIONS
from .tiny import tiny_tokenizer
from .variants import write_variants

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

WORK_FILES = {
    "tokenizer": ("text/tokenizer.json",),
    "text": ("text/checkpoint.pt",),
    "base": ("base/checkpoint.pt",),
    "superres": ("superres/checkpoint.pt",),
    # The fine-tuned decoder's checkpoint is a whole tokenizer, and goes before the first one.
    "base_tokenizer": ("decoder_base/checkpoint.pt", "tokenizer_base/checkpoint.pt"),
    "superres_tokenizer": ("decoder_superres/checkpoint.pt", "tokenizer_superres/checkpoint.pt"),
}
"""Where training leaves each part, in the work directory; the first that is there is taken."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="muse_models.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder of the bundle; replaced")
    where.add_argument("--variants", type=Path, help="folder for three bundles, f32, f16 and int8, and variants.md")
    parser.add_argument("--config", type=Path, default=CONFIG_DIR / "bundle.toml")
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    for name, paths in WORK_FILES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path, help=f"instead of <work-dir>/{' or '.join(paths)}"
        )
    parser.add_argument("--random", action="store_true", help="random weights for the parts that are not named")
    parser.add_argument("--weights", action="append", default=[], metavar="PART=PRECISION",
                        help="text, transformers or tokenizers, as f32, f16 or int8, instead of the configuration's")
    parser.add_argument("--external-above", type=int, default=EXTERNAL_ABOVE, metavar="BYTES",
                        help="weights of a graph go into a file of their own above this (%(default)s)")
    parser.add_argument("--no-compare", action="store_true",
                        help="do not run the graphs against PyTorch: for models of more than half the memory")
    parser.add_argument("--keep", type=Path, metavar="BUNDLE",
                        help="store weights that this bundle has in the form that they have there: for parts that were read "
                             "from it (muse_models.training.from_bundle) and shall only get other graphs")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(arguments.config)
    for choice in arguments.weights:
        part, _, precision = choice.partition("=")
        if part not in config["weights"] or precision not in PRECISIONS:
            parser.error(f"--weights {choice}: not PART=PRECISION")
        config["weights"][part] = precision
    if arguments.variants and arguments.no_compare:
        parser.error("--variants is there to compare")
    if arguments.variants and arguments.keep:
        parser.error("--keep is for one bundle")
    folder = arguments.out or arguments.variants
    writing = Writing(arguments.external_above, compare=not arguments.no_compare, keep=arguments.keep)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        parts = gather(config, _sources(arguments, config), CONFIG_DIR, folder.parent)
        if arguments.out:
            write_bundle(parts, folder, writing)
        else:
            print(write_variants(parts, folder, writing))
    except FileNotFoundError as error:
        print(f"export: {error} is not there", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


def _sources(arguments: argparse.Namespace, config: dict) -> Sources:
    """The files to read, as named, else where training leaves them (unless weights are to be random)."""
    files: dict[str, Path | None] = {}
    for name, paths in WORK_FILES.items():
        files[name] = getattr(arguments, name)
        stage = name.removesuffix("_tokenizer")
        if files[name] is not None or arguments.random or (stage == "superres" and "superres" not in config):
            continue
        if _brings_tokenizer(name, getattr(arguments, stage, None)):
            continue
        candidates = [arguments.work_dir / path for path in paths]
        files[name] = next((path for path in candidates if path.is_file()), candidates[-1])
    tokenizer, text = files.pop("tokenizer"), files["text"]
    if arguments.tokenizer is None and text is not None and text.is_dir():
        tokenizer = text_tokenizer_beside(text)
    for name, path in files.items():
        stage = name.removesuffix("_tokenizer")
        if stage == "superres" and "superres" not in config:
            continue
        brought = path is None and _brings_tokenizer(name, files.get(stage))
        print(f"{name:18} {files[stage] if brought else path or 'random weights'}", flush=True)
    return Sources(tiny_tokenizer() if tokenizer is None else load_text_tokenizer(tokenizer), **files)


def _brings_tokenizer(name: str, transformer: Path | None) -> bool:
    """Whether the part `name` is an image tokenizer that lies in the file of a transformer of others."""
    return name.endswith("_tokenizer") and transformer is not None and not is_own(transformer)


if __name__ == "__main__":
    sys.exit(main())
