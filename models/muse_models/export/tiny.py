"""Writes the bundles that tests run on: `python -m muse_models.export.tiny --out tests/bundles/tiny`.

Random weights from a fixed seed, 0.3 MB, and deliberately odd shapes: grids that are not square, logits wider than the
codebook, a mask id in the middle of what is left, another text length than the demo's. Code with a constant of the
demo model in it fails here. `--variant null` writes a bundle of a base stage alone, whose unconditional input is a
tensor and whose step graph has none of the optional inputs.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional

from ..reference.sampler import Settings
from ..text.encoder import EncoderShape, T5Encoder
from ..transformer.config import TransformerConfig
from ..transformer.model import MaskedTransformer, build
from .bundle import BundleParts, StagePart, TextPart, write_bundle

IMAGE_SIZE = (32, 48)
MAX_LENGTH = 20
TEXT_WIDTH = 24

WORDS = (
    "a an the two three four of on in to left right above below next and background square circle triangle star heart "
    "diamond red orange yellow green blue purple pink brown black gray white cat dog fox bicycle apple car house tree"
).split()


def tiny_tokenizer() -> Tokenizer:
    """A Unigram tokenizer with T5's conventions, that knows `WORDS`, and spells others in letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -5.0) for word in WORDS if word != "a"]
    pieces += [("▁a", -4.5), ("s", -5.0), *((letter, -8.0) for letter in letters if letter != "s")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


class PatchTokenizer(nn.Module):
    """Vector quantisation of raw pixels: a token is the nearest of the patches, and a patch is what it decodes to.

    Encoding what was decoded gives the same tokens, which makes tests of editing exact.
    """

    def __init__(self, codebook_size: int, patch: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        # A colour for each code and a gentle slope across the patch.
        colours = torch.rand(codebook_size, 3, 1, 1)
        slopes = torch.randn(codebook_size, 3, 2, 1, 1) * 0.1
        along = torch.linspace(-1, 1, patch)
        patches = colours + slopes[:, :, 0] * along[:, None] + slopes[:, :, 1] * along[None, :]
        self.patches = nn.Parameter(patches.clamp(0, 1).flatten(1))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, S] to [B, 3, H, W]."""
        patches = functional.embedding(tokens, self.patches)
        return functional.pixel_shuffle(patches.transpose(1, 2).unflatten(2, self.grid), self.patch).clamp(0, 1)

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in 0…1 to tokens int64 [B, S]."""
        pixels = functional.pixel_unshuffle(image, self.patch).flatten(2).transpose(1, 2)
        # The nearest patch p of x has the largest x·p − |p|²/2.
        closeness = pixels @ self.patches.T - self.patches.square().sum(dim=1) / 2
        return closeness.argmax(dim=-1)


@torch.no_grad()
def lively(model: MaskedTransformer) -> MaskedTransformer:
    """Scales a fresh model so that its logits are spread and depend on text, tokens and place, like a trained one's."""
    for name, parameter in model.named_parameters():
        if name.endswith((".out.weight", "low_to_high.weight")):
            parameter.mul_(2.0)
        elif name.endswith((".rows", ".columns")):
            parameter.normal_(std=0.7)
    model.head.weight.normal_(std=2.0 / model.config.width**0.5)
    return model.requires_grad_(False).eval()


def tiny_text() -> TextPart:
    tokenizer = tiny_tokenizer()
    shape = EncoderShape(tokenizer.get_vocab_size(), TEXT_WIDTH, layers=2, heads=3, head_width=10, hidden=40)
    encoder = T5Encoder(shape).requires_grad_(False).eval()
    return TextPart(encoder, tokenizer, MAX_LENGTH, [4, 12, MAX_LENGTH], precision="f16")


BASE = TransformerConfig(
    grid=(4, 6), codebook_size=37, vocab_size=41, logits_size=40, mask_id=39, text_width=TEXT_WIDTH,
    width=32, layers=2, heads=2, mlp_width=64,
)
SUPERRES = TransformerConfig(
    grid=(8, 12), codebook_size=53, vocab_size=54, logits_size=56, mask_id=53, text_width=TEXT_WIDTH,
    width=32, layers=2, heads=4, mlp_width=64, merge=2, low_grid=(4, 6), low_vocab_size=37, low_layers=1,
)
BASE_DEFAULTS = Settings(
    steps=6, guidance=2.0, guidance_schedule="linear", temperature=1.0, top_k=0, choice_temperature=4.5,
    mask_schedule="cosine", scheduler="confidence",
)
SUPERRES_DEFAULTS = Settings(
    steps=5, guidance=1.5, guidance_schedule="constant", temperature=0.9, top_k=20, choice_temperature=3.0,
    mask_schedule="cosine", scheduler="confidence",
)


def tiny_stage(config: TransformerConfig, defaults: Settings, patch: int, **options) -> StagePart:
    """A stage with random weights; `patch` is the side of a token in pixels."""
    tokenizer = PatchTokenizer(config.codebook_size, patch, IMAGE_SIZE).requires_grad_(False).eval()
    images = tokenizer.decode(torch.randint(0, config.codebook_size, (2, config.positions)))
    return StagePart(lively(build(config)), tokenizer, images, defaults, **options)


def tiny_parts() -> BundleParts:
    """Both stages, all three forms of storage."""
    torch.manual_seed(20261123)
    return BundleParts(
        name="muse-tiny",
        version="1",
        license="Apache-2.0",
        description="Random weights, for tests",
        text=tiny_text(),
        base=tiny_stage(BASE, BASE_DEFAULTS, 8, unconditional="masked_text", precision="int8"),
        superres=tiny_stage(SUPERRES, SUPERRES_DEFAULTS, 4, unconditional="empty_text", precision="f16"),
    )


def tiny_null_parts() -> BundleParts:
    """A base stage alone, whose unconditional input is a tensor of three vectors, and whose steps compute whole grids."""
    torch.manual_seed(20261124)
    return BundleParts(
        name="muse-tiny-null",
        version="1",
        license="Apache-2.0",
        description="Random weights and a null embedding, for tests",
        text=tiny_text(),
        base=tiny_stage(
            BASE, BASE_DEFAULTS, 8, unconditional="null_embedding",
            null_embedding=np.random.default_rng(5).normal(size=(3, TEXT_WIDTH)), precision="int8",
            whole_step=True,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", choices=("both", "null"), default="both", help="both stages; or base alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_bundle(tiny_parts() if arguments.variant == "both" else tiny_null_parts(), arguments.out)


if __name__ == "__main__":
    main()
