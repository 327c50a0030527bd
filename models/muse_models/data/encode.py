"""Turns pictures and captions into tokens, once: `python -m muse_models.data.encode --part base`.

Parts are `text` (captions and their tokens), `base` and `superres`; each can be made as soon as its
tokenizer is final. The package's docstring describes the files.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

from ..text import vocabulary
from ..tokenizer.model import ImageTokenizer
from ..tokenizer.pictures import to_tensor
from ..training import checkpoint
from ..training.config import default_work_dir
from ..training.hardware import Hardware
from .build import scene_from_json
from .captions import caption
from .render import halve

SPLITS = {"scenes": "tokens", "scenes-evaluation": "tokens/evaluation"}


def load_tokenizer(work_dir: Path, part: str) -> ImageTokenizer:
    """The frozen tokenizer of `base` or `superres`. Raises `FileNotFoundError` before it is trained."""
    path = work_dir / f"tokenizer_{part}" / "checkpoint.pt"
    saved = checkpoint.load(path)
    if saved is None:
        raise FileNotFoundError(path)
    model = ImageTokenizer.from_config(saved["config"])
    model.load_state_dict(saved["model"])
    return model.requires_grad_(False).eval()


def encode_text(work_dir: Path, source: str, target: Path, wordings: int) -> None:
    """Writes `captions.jsonl` and `text_ids.npy`; row `scene · wordings + k` is wording `k`."""
    tokenizer = vocabulary.load(work_dir / "text" / "tokenizer.json")
    texts = []
    for index, line in enumerate(open(work_dir / source / "scenes.jsonl")):
        rng = random.Random(f"captions/{source}/{index}")
        scene = scene_from_json(line)
        # The first wording is the plain one, so that the commonest prompts are well known.
        texts += [caption(scene, rng, plain=number == 0).text for number in range(wordings)]
    rows = np.zeros((len(texts), vocabulary.TEXT_LENGTH), np.uint16)
    for start in range(0, len(texts), 10000):
        rows[start : start + 10000] = vocabulary.encode(tokenizer, texts[start : start + 10000])
    (target / "captions.partial").write_text("".join(json.dumps(text) + "\n" for text in texts))
    np.save(target / "text_ids.partial.npy", rows)
    (target / "captions.partial").rename(target / "captions.jsonl")
    (target / "text_ids.partial.npy").rename(target / "text_ids.npy")


@torch.no_grad()
def encode_pictures(work_dir: Path, source: str, target: Path, part: str, wordings: int, hardware: Hardware) -> None:
    """Writes `<part>.npy`, each picture's tokens once for each wording."""
    model = load_tokenizer(work_dir, part).to(hardware.device, memory_format=torch.channels_last)
    images = np.load(work_dir / source / "images.npy", mmap_mode="r")
    staging = target / f"{part}.partial.npy"
    shape = (len(images) * wordings, model.grid_side**2)
    tokens = np.lib.format.open_memmap(staging, "w+", np.int16, shape)
    started = time.monotonic()
    for start in range(0, len(images), 64):
        batch = np.array(images[start : start + 64])
        if model.image_side * 2 == batch.shape[1]:
            batch = halve(batch)
        with hardware.autocast():
            encoded = model.encode(to_tensor(batch).to(hardware.device)).cpu().numpy()
        tokens[start * wordings : (start + len(batch)) * wordings] = encoded.repeat(wordings, 0)
        if start % 6400 == 0 and start:
            print(f"{part}: {start}/{len(images)}, {start / (time.monotonic() - started):.0f}/s", flush=True)
    tokens.flush()
    staging.rename(target / f"{part}.npy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--part", choices=("text", "base", "superres"), required=True)
    parser.add_argument("--wordings", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # The served encoder computes in f32; bf16 would give other codes where a number is close to a boundary.
    hardware = Hardware.from_options({"device": arguments.device, "precision": "f32"})
    for source, folder in SPLITS.items():
        target = arguments.work_dir / folder
        target.mkdir(parents=True, exist_ok=True)
        if arguments.part == "text":
            encode_text(arguments.work_dir, source, target, arguments.wordings)
        else:
            encode_pictures(arguments.work_dir, source, target, arguments.part, arguments.wordings, hardware)


if __name__ == "__main__":
    main()
