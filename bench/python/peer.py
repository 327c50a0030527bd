"""How muse-bench asks a peer for pictures: one line of JSON each way.

The first line that a peer writes says what it is; then it reads lines {"prompts": ["a red star", …], "seed": 7} and answers
each with {"seconds": …, "pictures": …}, by its own clock: what passes through the pipe is not its work.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image


def png(pictures: Iterable[np.ndarray]) -> list[bytes]:
    """A file for each picture, uint8 [H, W, 3]."""
    files = []
    for pixels in pictures:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


def answer(make: Callable[[list[str], int], list[bytes]], versions: str) -> None:
    """Makes pictures, a PNG for each prompt, until there is nothing more to read."""
    python = ".".join(map(str, sys.version_info[:3]))
    print(json.dumps({"versions": f"Python {python}, {versions}"}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        begun = time.perf_counter()
        files = make(task["prompts"], task["seed"])
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "pictures": len(files)}), flush=True)
