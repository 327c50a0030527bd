#!/usr/bin/env python3
"""The bundle's text encoder in a plain Python loop: what one writes who has ONNX Runtime and ten minutes.

    encoder_loop.py --bundle bundles/demo --threads 2

reads and answers as `peer` says. Batches are padded to their longest prompt; ONNX Runtime's other options as they come in
Python.
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from peer import answer_embeddings
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    text = tomllib.loads((arguments.bundle / "bundle.toml").read_text())["text"]
    tokenizer = Tokenizer.from_file(str(arguments.bundle / text["tokenizer"]))
    tokenizer.enable_padding(pad_id=text["pad_id"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    encoder = onnxruntime.InferenceSession(
        str(arguments.bundle / text["encoder"]), options, providers=["CPUExecutionProvider"]
    )

    def embed(prompts: list[str]) -> list[np.ndarray]:
        encodings = tokenizer.encode_batch(prompts)
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        (states,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        return [row[:length] for row, length in zip(states, mask.sum(1), strict=True)]

    answer_embeddings(embed, f"ONNX Runtime {onnxruntime.__version__}, NumPy {np.__version__}")


if __name__ == "__main__":
    main()
