#!/usr/bin/env python3
"""Large matrix products in f32, in PyTorch where this Python has it and else in NumPy: what the machine's cores can do.

    products.py --threads 2

reads lines {"side": 1024, "repeats": 4} and answers as `peer` says. Other options are taken, for muse-bench gives the same to
every peer, and have no use here.
"""

import argparse
import os
from functools import cache

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
threads = parser.parse_known_args()[0].threads
# OpenBLAS reads it once, when NumPy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = str(threads)

import numpy as np  # noqa: E402
from peer import answer_products  # noqa: E402

try:
    import torch
except ImportError:
    torch = None


@cache
def matrices(side: int) -> tuple:
    """Two factors and room for the product, f32 [side, side]."""
    left, right = np.random.default_rng(side).standard_normal((2, side, side), np.float32)
    arrays = left, right, np.empty_like(left)
    return tuple(map(torch.from_numpy, arrays)) if torch else arrays


def multiply(side: int) -> None:
    left, right, product = matrices(side)
    if torch:
        torch.matmul(left, right, out=product)
    else:
        np.matmul(left, right, out=product)


if torch:
    torch.set_num_threads(threads)
answer_products(multiply, f"PyTorch {torch.__version__}" if torch else f"NumPy {np.__version__}")
