"""Makes one picture: `python -m muse_models.reference --bundle DIR --prompt "a red apple" --seed 1 --out apple.png`."""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .bundle import Bundle
from .pipeline import Request, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-index", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = Bundle(arguments.bundle, arguments.threads)
    started = time.monotonic()
    request = Request(arguments.prompt, arguments.seed, arguments.image_index, arguments.negative)
    image = generate(bundle, request)
    pixels = (image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(arguments.out)
    print(f"{arguments.out}: {pixels.shape[1]}x{pixels.shape[0]} pixels in {time.monotonic() - started:.2f} s")


if __name__ == "__main__":
    main()
