#!/usr/bin/env python3
"""muse-maskgit-pytorch with the bundle's shapes and random weights: both stages, from prompts to PNG.

    lucidrains.py --bundle bundles/demo --configs models/configs --threads 2

reads and answers as `peer` says. `Muse.forward` as that package has it: the base picture is decoded and encoded again on its
way to super-resolution. Text through Hugging Face's T5 encoder of the bundle's shape. Fused attention; no gradients.
"""

import muse_maskgit_pytorch
import torch
import transformers
from muse_maskgit_pytorch import t5
from peer import answer
from pytorch_peer import Shape, Shapes, files, parameters, shapes_from_command_line
from t5_encoder import text_encoder

ENCODER = "bundle"
"""By what name the package finds the text encoder."""


class _Tokenizer:
    """The part of a Hugging Face tokenizer that the package calls."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def batch_encode_plus(self, texts: list[str], **_) -> transformers.BatchEncoding:
        ids, mask = self._shapes.ids(texts)
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask})


def stage(shape: Shape, side: int, channels: list[int], **others) -> muse_maskgit_pytorch.MaskGit:
    """A transformer, and a tokenizer of eight pixels a token whose channels at a quarter and an eighth are `channels`."""
    unit = 32
    vae = muse_maskgit_pytorch.VQGanVAE(
        dim=unit, layers=3, codebook_size=shape.codebook, use_vgg_and_gan=False,
        encdec_layer_mults=[1, *(width // unit for width in channels)], encdec_num_resnet_blocks=(0, 1, 1),
    )
    transformer = muse_maskgit_pytorch.MaskGitTransformer(
        num_tokens=shape.codebook, seq_len=shape.positions, dim=shape.width, depth=shape.layers,
        dim_head=shape.width // shape.heads, heads=shape.heads, t5_name=ENCODER, flash=True,
        # The package takes two thirds of it, for the gate.
        ff_mult=1.5 * shape.mlp_width / shape.width,
    )
    return muse_maskgit_pytorch.MaskGit(image_size=side, transformer=transformer, vae=vae, **others).eval()


def main() -> None:
    # A bar on stderr for every stage of every call would be measured with it.
    muse_maskgit_pytorch.muse_maskgit_pytorch.tqdm = lambda steps, **_: steps

    shapes = shapes_from_command_line(__doc__)
    encoder = text_encoder(shapes)
    t5.T5_CONFIGS[ENCODER] = {"config": encoder.config, "model": encoder, "tokenizer": _Tokenizer(shapes)}
    base = stage(shapes.base, shapes.base_side, shapes.decoder_channels)
    superres = stage(
        shapes.superres, shapes.image_side, shapes.decoder_channels, cond_vae=base.vae, cond_image_size=shapes.base_side
    )

    @torch.inference_mode()
    def make(prompts: list[str], seed: int) -> list[bytes]:
        torch.manual_seed(seed)
        # Its scale is Muse's guidance plus one, the same at every step.
        low = base.generate(texts=prompts, timesteps=shapes.base.steps, cond_scale=1 + shapes.base.guidance)
        images = superres.generate(
            texts=prompts, cond_images=low, timesteps=shapes.superres.steps, cond_scale=1 + shapes.superres.guidance
        )
        return files(images)

    sizes = f"transformers of {parameters(base.transformer)} and {parameters(superres.transformer)} parameters"
    answer(make, f"muse-maskgit-pytorch 0.3.5, PyTorch {torch.__version__}, {sizes}")


if __name__ == "__main__":
    main()
