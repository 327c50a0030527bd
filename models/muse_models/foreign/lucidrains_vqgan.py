"""Image tokenizers of lucidrains' muse-maskgit-pytorch (`VQGanVAE`, as in 0.3.5), with lookup-free quantisation or codes.

The lists of layers are rebuilt from the names and shapes in the state dict. What is not in it is taken as that version
has it, unless the caller says otherwise: 16 groups a norm, leaky ReLUs of slope 0.1, codes of plus and minus 1.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .weights import ForeignCheckpointError

SLOPE = 0.1
DOWN = {"kernel_size": 4, "stride": 2, "padding": 1}
_MARK = "enc_dec.encoders.0.weight"
_PLAIN_CODEBOOK = {"_codebook.embed", "_codebook.initted", "_codebook.cluster_size", "_codebook.embed_avg"}


@dataclass(frozen=True)
class VqganOptions:
    """What a state dict does not say."""

    groups: int = 16
    """Groups of the group norms (`encdec_resnet_groups`)."""
    codebook_scale: float = 1.0
    """Size of the values of lookup-free codes (`codebook_scale`)."""


class PlainBlock(nn.Module):
    """The encoder's residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.net(features)


class GatedBlock(nn.Module):
    """The decoder's residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.GLU(dim=1),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.GLU(dim=1),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.net(features)


class LookupFreeQuantiser(nn.Module):
    """A code is the signs of `bits` projected features, the first the most significant."""

    def __init__(self, bits: int, channels: int, projected: bool, scale: float) -> None:
        super().__init__()
        self.codebook_size = 2**bits
        self.scale = scale
        self.project_in = nn.Linear(channels, bits) if projected else nn.Identity()
        self.project_out = nn.Linear(bits, channels) if projected else nn.Identity()
        self.register_buffer("place", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def tokens(self, features: Tensor) -> Tensor:
        """Features [B, S, channels] to tokens [B, S]."""
        return ((self.project_in(features) > 0).long() * self.place).sum(dim=-1)

    def features(self, tokens: Tensor) -> Tensor:
        """The inverse, as far as signs tell."""
        signs = (tokens[:, :, None] // self.place) % 2 * 2 - 1
        return self.project_out(signs.float() * self.scale)


class CodebookQuantiser(nn.Module):
    """A code is the nearest of some learned vectors, or the one of the nearest direction."""

    def __init__(self, codes: int, dimensions: int, channels: int) -> None:
        super().__init__()
        projected = dimensions != channels
        self.codebook_size = codes
        self.codes = nn.Parameter(torch.zeros(codes, dimensions))
        self.project_in = nn.Linear(channels, dimensions) if projected else nn.Identity()
        self.project_out = nn.Linear(dimensions, channels) if projected else nn.Identity()

    def tokens(self, features: Tensor) -> Tensor:
        """Features [B, S, channels] to tokens [B, S].

        The nearest code c of x has the largest x·c − |c|²/2. Where all codes have length 1, that is the code of the
        nearest direction too, whatever x's length: which of the two was meant need not be known.
        """
        projected = self.project_in(features)
        return (projected @ self.codes.T - self.codes.square().sum(dim=1) / 2).argmax(dim=-1)

    def features(self, tokens: Tensor) -> Tensor:
        """Each token's code, [B, S, channels]."""
        return self.project_out(functional.embedding(tokens, self.codes))


class LucidrainsTokenizer(nn.Module):
    """`encode` and `decode` of pictures of `grid` tokens."""

    def __init__(
        self, encoders: list[nn.Module], decoders: list[nn.Module], quantiser: nn.Module, grid: tuple[int, int], cell: int
    ) -> None:
        super().__init__()
        self.encoders = nn.Sequential(*encoders)
        self.decoders = nn.Sequential(*decoders)
        self.quantizer = quantiser
        self.grid = grid
        self.image_size = (grid[0] * cell, grid[1] * cell)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.quantizer.codebook_size

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in 0…1 to tokens int64 [B, S]."""
        return self.quantizer.tokens(self.encoders(image).flatten(2).transpose(1, 2))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, S] to [B, 3, H, W], clipped to 0…1."""
        features = self.quantizer.features(tokens).transpose(1, 2)
        return self.decoders(features.unflatten(2, self.grid)).clamp(0, 1)


def vqgan_prefixes(tensors: dict[str, Tensor]) -> list[str]:
    """The prefixes under which `tensors` hold such a tokenizer."""
    return [name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)]


def load_vqgan(
    tensors: dict[str, Tensor], prefix: str, grid: tuple[int, int], options: VqganOptions, where: str
) -> LucidrainsTokenizer:
    """The tokenizer under `prefix` in `tensors`, for pictures of `grid` tokens; raises `ForeignCheckpointError`.

    The discriminator and the network of the perceptual loss are left alone.
    """
    own = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items() if name.startswith(prefix)}
    encoders = _layers(own, "enc_dec.encoders.", options.groups, where)
    decoders = _layers(own, "enc_dec.decoders.", options.groups, where)
    first, last = own[_MARK], encoders[-1]
    if first.shape[1] != 3:
        raise ForeignCheckpointError(f"{where}: pictures of {first.shape[1]} channels; a bundle's have three, RGB")
    channels = next(
        module.out_channels for module in reversed(list(last.modules())) if isinstance(module, nn.Conv2d)
    )
    quantiser, renamed = _quantiser(own, channels, options, where)
    cell = 2 ** sum(isinstance(layer, nn.Sequential) for layer in encoders)
    model = LucidrainsTokenizer(encoders, decoders, quantiser, grid, cell)
    parts = {
        name.removeprefix("enc_dec."): tensor for name, tensor in own.items() if name.startswith("enc_dec.")
    } | {f"quantizer.{name}": tensor for name, tensor in renamed.items()}
    try:
        model.load_state_dict(parts)
    except RuntimeError as error:
        raise ForeignCheckpointError(f"{where}: not such a tokenizer: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()


def _layers(own: dict[str, Tensor], prefix: str, groups: int, where: str) -> list[nn.Module]:
    """The layers of one half, in order, from their tensors' names and shapes."""
    numbers = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in own if re.match(rf"{prefix}\d+\.", name)})
    if numbers != list(range(len(numbers))) or not numbers:
        raise ForeignCheckpointError(f"{where}: the layers under {prefix} are {numbers}")
    layers: list[nn.Module] = []
    for number in numbers:
        plain, moved, block = (own.get(f"{prefix}{number}.{part}weight") for part in ("", "0.", "net.0."))
        gated = f"{prefix}{number}.net.2.weight" in own
        if plain is not None and plain.ndim == 4:
            layers.append(nn.Conv2d(plain.shape[1], plain.shape[0], plain.shape[2], padding=plain.shape[2] // 2))
        elif moved is not None and moved.shape[2:] == (4, 4):
            kind = nn.Conv2d if prefix.endswith("encoders.") else nn.ConvTranspose2d
            inside, outside = moved.shape[1::-1] if kind is nn.Conv2d else moved.shape[:2]
            layers.append(nn.Sequential(kind(inside, outside, **DOWN), nn.LeakyReLU(SLOPE)))
        elif block is not None and block.shape[1] % groups == 0:
            layers.append((GatedBlock if gated else PlainBlock)(block.shape[1], groups))
        elif block is not None:
            raise ForeignCheckpointError(f"{where}: {block.shape[1]} channels do not divide into {groups} groups")
        else:
            raise ForeignCheckpointError(f"{where}: {prefix}{number} is no layer that is known")
    return layers


def _quantiser(
    own: dict[str, Tensor], channels: int, options: VqganOptions, where: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The quantiser and its tensors."""
    parts = {name.removeprefix("quantizer."): value for name, value in own.items() if name.startswith("quantizer.")}
    codes = parts.get("_codebook.embed")
    projections = {name: parts.pop(name) for name in list(parts) if name.startswith("project_")}
    if codes is not None:
        unknown = sorted(set(parts) - _PLAIN_CODEBOOK)
        if unknown or codes.ndim != 3 or codes.shape[0] != 1:
            what = unknown[0] if unknown else f"a codebook of shape {list(codes.shape)}"
            raise ForeignCheckpointError(f"{where}: the quantiser has {what}; known is one plain codebook")
        if not bool(parts.get("_codebook.initted", torch.ones(1)).all()):
            raise ForeignCheckpointError(f"{where}: the codebook was never filled")
        return CodebookQuantiser(codes.shape[1], codes.shape[2], channels), {"codes": codes[0]} | projections
    place = parts.pop("mask", None)
    parts.pop("codebook", None)
    if place is None or parts:
        what = next(iter(parts), "no codebook and no `mask`")
        raise ForeignCheckpointError(f"{where}: the quantiser has {what}; known are one codebook, and lookup-free codes")
    bits = place.numel()
    if not projections and bits != channels:
        raise ForeignCheckpointError(f"{where}: {bits} bits for {channels} channels, and no projection between them")
    # Several codebooks have one `mask` and a wider projection; load_state_dict would say so less plainly.
    if projections and projections["project_in.weight"].shape != (bits, channels):
        found = list(projections["project_in.weight"].shape)
        raise ForeignCheckpointError(f"{where}: a projection of shape {found} for {bits} bits; known is one codebook")
    return LookupFreeQuantiser(bits, channels, bool(projections), options.codebook_scale), projections


def same_tokens(one: nn.Module, other: nn.Module) -> bool:
    """Whether two tokenizers make the same tokens of a picture, as far as their weights tell."""
    if type(one) is not type(other):
        return False
    halves = [
        {name: value for name, value in model.state_dict().items() if not name.startswith("decoder")}
        for model in (one, other)
    ]
    return halves[0].keys() == halves[1].keys() and all(
        torch.equal(value, halves[1][name]) for name, value in halves[0].items()
    )
