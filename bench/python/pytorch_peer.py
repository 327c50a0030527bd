"""What the PyTorch peers share: their command line, the bundle's shapes, its tokenizer, and pictures as files.

Their weights are random: speed does not depend on them. Shapes come from the manifest, and from the configurations that the
bundle's parts were trained by where the manifest has no need to say them.
"""

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from peer import png
from tokenizers import Tokenizer


def shapes_from_command_line(description: str) -> "Shapes":
    """What `--bundle` and `--configs` say; `--threads` is set."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return Shapes(arguments.bundle, arguments.configs)


@dataclass(frozen=True)
class Shape:
    """One transformer: tokens of its grid, width, layers, heads, width of its feed-forward layers, codebook, defaults."""

    positions: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    codebook: int
    steps: int
    guidance: float


class Shapes:
    """Of a bundle and its training configurations."""

    def __init__(self, bundle: Path, configs: Path) -> None:
        self.manifest = tomllib.loads((bundle / "bundle.toml").read_text())
        self.tokenizer = Tokenizer.from_file(str(bundle / self.manifest["text"]["tokenizer"]))
        self.text = _model(configs / "text.toml")
        self.image_side = self.manifest["superres"]["image_size"][0]
        self.base_side = self.manifest["base"]["image_size"][0]
        self.base, self.superres = (self._stage(name, _model(configs / f"{name}.toml")) for name in ("base", "superres"))
        self.decoder_channels = _model(configs / "decoder_superres.toml")["decoder_channels"]

    def _stage(self, name: str, model: dict) -> Shape:
        table = self.manifest[name]
        height, width = table["grid"]
        return Shape(
            height * width, model["width"], model["layers"], model["heads"], model["mlp_width"], table["codebook_size"],
            table["defaults"]["steps"], table["defaults"]["guidance"],
        )

    def ids(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and their mask, int64 [B, longest], padded at the end."""
        rows = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.manifest["text"]["pad_id"])
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return ids, mask


def _model(path: Path) -> dict:
    return tomllib.loads(path.read_text())["model"]


def files(images: torch.Tensor) -> list[bytes]:
    """f32 [B, 3, H, W] in 0..1 as PNG."""
    return png((images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def parameters(module: torch.nn.Module) -> str:
    """Their number, in millions."""
    return f"{sum(one.numel() for one in module.parameters()) / 1e6:.1f} M"
