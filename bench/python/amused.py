#!/usr/bin/env python3
"""diffusers' aMUSEd pipeline with the bundle's shapes and random weights: one stage, from prompts to PNG.

    amused.py --bundle bundles/demo --configs models/configs --threads 2

reads and answers as `peer` says. aMUSEd has no super-resolution: one transformer with the base stage's width, layers and steps fills the
grid of the last stage. Its text encoder is CLIP's, here with the bundle's encoder's width and layers. No gradients.
"""

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline
from peer import answer
from pytorch_peer import Shapes, files, parameters, shapes_from_command_line

MICRO_CONDITIONS = 5
"""Numbers beside the text that the pipeline conditions on."""


def pipeline(shapes: Shapes) -> AmusedPipeline:
    """With a tokenizer of eight pixels a token whose channels at a quarter and an eighth are the bundle's decoder's."""
    text, base, last = shapes.text, shapes.base, shapes.superres
    channels, side = shapes.decoder_channels, int(last.positions**0.5)
    conditions = 64
    transformer = diffusers.UVit2DModel(
        hidden_size=base.width, intermediate_size=base.mlp_width, num_hidden_layers=base.layers, num_attention_heads=base.heads,
        in_channels=base.width, block_out_channels=base.width, num_res_blocks=1, block_num_heads=base.heads,
        encoder_hidden_size=text["width"], cond_embed_dim=text["width"], micro_cond_encode_dim=conditions,
        micro_cond_embed_dim=MICRO_CONDITIONS * conditions, codebook_size=last.codebook, vocab_size=last.codebook + 1,
        sample_size=side,
    )
    vqvae = diffusers.VQModel(
        block_out_channels=(32, 64, *channels), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=64, num_vq_embeddings=last.codebook,
        mid_block_add_attention=False, lookup_from_codebook=True,
    )
    encoder = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=text["vocabulary"], hidden_size=text["width"], intermediate_size=text["hidden"], projection_dim=text["width"],
            num_hidden_layers=text["layers"], num_attention_heads=text["heads"],
            max_position_embeddings=shapes.manifest["text"]["max_length"], eos_token_id=1,
        )
    )
    scheduler = diffusers.AmusedScheduler(mask_token_id=last.codebook)
    for module in (transformer, vqvae, encoder):
        module.eval()
    made = AmusedPipeline(vqvae=vqvae, tokenizer=None, text_encoder=encoder, transformer=transformer, scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def main() -> None:
    shapes = shapes_from_command_line(__doc__)
    amused = pipeline(shapes)
    length = shapes.manifest["text"]["max_length"]

    def embed(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled [B, D] and per-token [B, L, D] embeddings, as the pipeline computes them from its own tokenizer's ids."""
        ids = torch.nn.functional.pad(shapes.ids(prompts)[0], (0, length), value=1)[:, :length]
        output = amused.text_encoder(ids, return_dict=True, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]

    @torch.inference_mode()
    def make(prompts: list[str], seed: int) -> list[bytes]:
        pooled, states = embed(prompts)
        empty_pooled, empty_states = embed([""] * len(prompts))
        images = amused(
            prompt_embeds=pooled, encoder_hidden_states=states, negative_prompt_embeds=empty_pooled,
            negative_encoder_hidden_states=empty_states, num_inference_steps=shapes.base.steps,
            guidance_scale=1 + shapes.base.guidance, generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).images
        return files(images)

    sizes = f"a transformer of {parameters(amused.transformer)} parameters"
    answer(make, f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}, {sizes}")


if __name__ == "__main__":
    main()
