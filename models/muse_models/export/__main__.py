"""Exports a bundle: `python -m muse_models.export --work-dir DIR --out ../bundles/demo`.

Takes what training left in the work directory; each part can be named apart. `--random` takes random weights for all
parts, with the shapes of `configs/`: a bundle to measure speed on before anything is trained. Prints size and
difference from PyTorch for every graph, and fails if one is further off than rounding explains.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..training.config import default_work_dir, load_config
from .bundle import write_bundle
from .checkpoints import Sources, gather
from .tiny import tiny_tokenizer

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

WORK_FILES = {
    "tokenizer": "text/tokenizer.json",
    "text": "text/checkpoint.pt",
    "base": "base/checkpoint.pt",
    "superres": "superres/checkpoint.pt",
    "base_tokenizer": "tokenizer_base/checkpoint.pt",
    "superres_tokenizer": "tokenizer_superres/checkpoint.pt",
}
"""Where training leaves each part, in the work directory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle; replaced")
    parser.add_argument("--config", type=Path, default=CONFIG_DIR / "bundle.toml")
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    for name, path in WORK_FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"instead of <work-dir>/{path}")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--weights", action="append", default=[], metavar="PART=PRECISION",
                        help="text, transformers or tokenizers, as f32, f16 or int8, instead of the configuration's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(arguments.config)
    for choice in arguments.weights:
        part, _, precision = choice.partition("=")
        if part not in config["weights"] or precision not in ("f32", "f16", "int8"):
            parser.error(f"--weights {choice}: not PART=PRECISION")
        config["weights"][part] = precision
    if arguments.random:
        sources = Sources(Tokenizer.from_file(str(arguments.tokenizer)) if arguments.tokenizer else tiny_tokenizer())
    else:
        files = {name: getattr(arguments, name) or arguments.work_dir / path for name, path in WORK_FILES.items()}
        sources = Sources(Tokenizer.from_file(str(files.pop("tokenizer"))), **files)
    write_bundle(gather(config, sources, CONFIG_DIR), arguments.out)


if __name__ == "__main__":
    main()
