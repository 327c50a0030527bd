"""Makes the training pictures: `python -m muse_models.data.build --scenes 60000`.

Scene `i` depends on `--seed` and `i` alone, so that a longer run only adds pictures.
"""

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..training.config import default_work_dir
from .render import Renderer
from .scene import CANVAS, Item, Scene, random_scene


def scene_from_json(line: str) -> Scene:
    """Reads a line of `scenes.jsonl`."""
    fields = json.loads(line)
    return Scene(tuple(Item(**item) for item in fields["items"]), fields["background"])


def build(work_dir: Path, folder: str, scenes: int, seed: int, held_out: bool) -> Path:
    """Writes `images.npy` and `scenes.jsonl` under `work_dir / folder` and returns that folder."""
    target = work_dir / folder
    target.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(work_dir)
    staging = target / "images.partial.npy"
    images = np.lib.format.open_memmap(staging, "w+", np.uint8, (scenes, CANVAS, CANVAS, 3))
    started = time.monotonic()
    with open(target / "scenes.partial.jsonl", "w") as lines:
        for index in range(scenes):
            rng = random.Random(f"{seed}/{folder}/{index}")
            scene = random_scene(rng, held_out)
            images[index] = renderer.draw(scene, rng)
            lines.write(json.dumps(asdict(scene)) + "\n")
            if index % 10000 == 9999:
                speed = (index + 1) / (time.monotonic() - started)
                print(f"{folder}: {index + 1}/{scenes} pictures, {speed:.0f}/s", flush=True)
    images.flush()
    (target / "scenes.partial.jsonl").rename(target / "scenes.jsonl")
    staging.rename(target / "images.npy")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--scenes", type=int, default=60000)
    parser.add_argument("--evaluation-scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    build(arguments.work_dir, "scenes-evaluation", arguments.evaluation_scenes, arguments.seed, True)
    build(arguments.work_dir, "scenes", arguments.scenes, arguments.seed, False)


if __name__ == "__main__":
    main()
