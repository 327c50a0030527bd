#!/usr/bin/env python3
"""Hugging Face's T5 encoder in PyTorch, with the bundle's shape and random weights: prompts to embeddings.

    t5_encoder.py --bundle bundles/demo --configs models/configs --threads 2

reads and answers as `peer` says. Batches are padded to their longest prompt; scaled dot-product attention where the package
has it for T5; no gradients.
"""

import numpy as np
import torch
import transformers
from peer import answer_embeddings
from pytorch_peer import Shapes, parameters, shapes_from_command_line


def text_encoder(shapes: Shapes) -> transformers.T5EncoderModel:
    """Of the bundle's shape."""
    text = shapes.text
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=text["vocabulary"], d_model=text["width"], d_kv=text["head_width"], d_ff=text["hidden"],
            num_layers=text["layers"], num_heads=text["heads"], feed_forward_proj="gated-gelu",
        )
    ).eval()


def main() -> None:
    shapes = shapes_from_command_line(__doc__)
    encoder = text_encoder(shapes)

    @torch.inference_mode()
    def embed(prompts: list[str]) -> list[np.ndarray]:
        ids, mask = shapes.ids(prompts)
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        return [row[:length] for row, length in zip(states, mask.sum(1).tolist(), strict=True)]

    versions = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
    answer_embeddings(embed, f"{versions}, {parameters(encoder)} parameters")


if __name__ == "__main__":
    main()
