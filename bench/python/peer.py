"""How muse-bench asks a peer for pictures, embeddings or products: one line of JSON each way.

The first line that a peer writes says what it is; then it reads lines and answers each with {"seconds": …, "made": …}, by its
own clock: what passes through the pipe is not its work. Lines are {"prompts": ["a red star", …], "seed": 7} for pictures,
{"batches": [["a red star", …], …]} for embeddings, and {"side": 1024, "repeats": 4} for matrix products.
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
    _answer(lambda task: len(make(task["prompts"], task["seed"])), versions)


def answer_embeddings(embed: Callable[[list[str]], list[np.ndarray]], versions: str) -> None:
    """Embeds batch after batch, [tokens, width] for each prompt, until there is nothing more to read."""
    _answer(lambda task: sum(len(embed(batch)) for batch in task["batches"]), versions)


def answer_products(multiply: Callable[[int], None], versions: str) -> None:
    """Multiplies square matrices of a side, several times, until there is nothing more to read."""

    def repeat(task: dict) -> int:
        for _ in range(task["repeats"]):
            multiply(task["side"])
        return task["repeats"]

    _answer(repeat, versions)


def _answer(work: Callable[[dict], int], versions: str) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    print(json.dumps({"versions": f"Python {python}, {versions}"}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        begun = time.perf_counter()
        made = work(task)
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "made": made}), flush=True)
