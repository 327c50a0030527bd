"""Masked transformers of lucidrains' muse-maskgit-pytorch (`MaskGitTransformer`, as in 0.3.5), base and super-resolution.

A layer is self-attention, cross-attention and a gated perceptron. Queries and keys are normalised, attention has one
learned key of its own that is always seen, and the base tokens of super-resolution stand in the context beside the
text. With the text masked the model computes what it did for dropped text in training, so that the bundle's
unconditional input is `masked_text`.

Not in a state dict, hence taken as that version has it: the factor 8 of attention scores.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import attend
from ..transformer.layers import Linear, at_positions
from .weights import ForeignCheckpointError

SCORE_SCALE = 8.0
UNCONDITIONAL = "masked_text"

_MARK = "transformer_blocks.norm.gamma"
"""A tensor that every such transformer has."""
_LAYER = re.compile(r"transformer_blocks\.layers\.(\d+)\.([012])\.(.+)")
_BLOCKS = {"0": "self_attention", "1": "cross_attention", "2": "mlp"}
_ATTENTION = {
    "norm.gamma": "norm.weight", "null_kv": "null", "q_scale": "query_scale", "k_scale": "key_scale",
    "to_q.weight": "query.weight", "to_kv.weight": "key_value.weight", "to_out.weight": "out.weight",
}
_MLP = {"0.gamma": "norm.weight", "1.weight": "into.weight", "3.gamma": "hidden_norm.weight", "4.weight": "out.weight"}
_OTHERS = {
    "token_emb.weight": "tokens.weight", "pos_emb.weight": "positions", "text_embed_proj.weight": "text_projection.weight",
    _MARK: "norm.weight", "to_logits.weight": "head.weight",
}
_UNUSED = re.compile(r"norm\.(gamma|beta)|self_cond_to_init_embed\..+")
"""Tensors that the original has and does not use: a second norm, and self-conditioning where it is off."""
_TRAINED_SELF_CONDITIONING = ("self_cond_to_init_embed.0.gamma", "self_cond_to_init_embed.3.gamma")


@dataclass(frozen=True)
class LucidrainsShape:
    """The sizes of a transformer; a `StageShape` of the export."""

    grid: tuple[int, int]
    codebook_size: int
    text_width: int
    width: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    low_grid: tuple[int, int] | None = None
    low_vocab_size: int = 0

    @property
    def positions(self) -> int:
        """S."""
        return self.grid[0] * self.grid[1]

    @property
    def mask_id(self) -> int:
        """The id after the last code."""
        return self.codebook_size

    @property
    def vocab_size(self) -> int:
        """Codes and the mask id."""
        return self.codebook_size + 1

    @property
    def logits_size(self) -> int:
        """A logit for each code."""
        return self.codebook_size


class Attention(nn.Module):
    """Attention of normalised queries to normalised keys, one of which is learned and always seen."""

    def __init__(self, shape: LucidrainsShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.heads = shape.heads
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.null = nn.Parameter(torch.zeros(2, shape.heads, 1, shape.head_width))
        self.query_scale = nn.Parameter(torch.ones(shape.head_width))
        self.key_scale = nn.Parameter(torch.ones(shape.head_width))
        self.query = Linear(shape.width, inner)
        self.key_value = Linear(shape.width, 2 * inner)
        self.out = Linear(inner, shape.width)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, 1 + P, inner] of `context` [B, P, width], the learned ones first."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        null_key, null_value = (part.reshape(1, 1, -1).expand(context.shape[0], -1, -1) for part in self.null)
        key = torch.cat([null_key, key], dim=1)
        return self._normal(key, self.key_scale), torch.cat([null_value, value], dim=1)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """`states` [B, Q, width], which are normed already, over keys and values of `keys_values`."""
        query = self._normal(self.query(states), self.query_scale)
        return self.out(attend(query, key, value, self.heads, key_mask, scale=SCORE_SCALE))

    def _normal(self, states: Tensor, scale: Tensor) -> Tensor:
        """Each head's part of [B, P, inner] at length 1, times `scale`."""
        split = states.unflatten(2, (self.heads, -1))
        return (functional.normalize(split, dim=-1) * scale).flatten(2)


class GatedPerceptron(nn.Module):
    """Norm, a map whose second half gates the first, norm, map."""

    def __init__(self, shape: LucidrainsShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.into = Linear(shape.width, 2 * shape.hidden)
        self.hidden_norm = nn.LayerNorm(shape.hidden, bias=False)
        self.out = Linear(shape.hidden, shape.width)

    def forward(self, states: Tensor) -> Tensor:
        value, gate = self.into(self.norm(states)).chunk(2, dim=-1)
        return self.out(self.hidden_norm(gate * functional.gelu(value)))


class Layer(nn.Module):
    """Self-attention, cross-attention, perceptron, each added to its input."""

    def __init__(self, shape: LucidrainsShape) -> None:
        super().__init__()
        self.self_attention = Attention(shape)
        self.cross_attention = Attention(shape)
        self.mlp = GatedPerceptron(shape)

    def forward(
        self,
        states: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor,
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """[B, S, W], or [M, W] at `positions`. With `grids` [B], row b of keys and values meets `states[grids[b]]`."""
        normal = self.self_attention.norm(states)
        states = states + self.self_attention(normal, *self.self_attention.keys_values(normal))
        if grids is not None:
            states = states.index_select(0, grids)
        states = states + self.cross_attention(self.cross_attention.norm(states), key, value, key_mask)
        if positions is not None:
            states = at_positions(states, positions)
        return states + self.mlp(states)


class LucidrainsTransformer(nn.Module):
    """A `StageModel` of the export."""

    def __init__(self, shape: LucidrainsShape) -> None:
        super().__init__()
        self.config = shape
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Parameter(torch.zeros(shape.positions, shape.width))
        same = shape.text_width == shape.width
        self.text_projection = nn.Identity() if same else Linear(shape.text_width, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = Linear(shape.width, shape.codebook_size)

    def conditioning_names(self) -> list[str]:
        """Names of the tensors that `condition` returns, in its order."""
        return [*(f"{kind}{layer}" for layer in range(self.config.layers) for kind in ("k", "v")), "key_mask"]

    def condition(self, text: Tensor, text_mask: Tensor, low_tokens: Tensor | None = None) -> dict[str, Tensor]:
        """Each layer's cross-attention keys and values, and the mask over them."""
        context = self.text_projection(text)
        always = torch.ones_like(text_mask[:, :1])
        mask = torch.cat([always, text_mask], dim=1)
        if low_tokens is not None:
            context = torch.cat([context, self.tokens(low_tokens)], dim=1)
            mask = torch.cat([mask, torch.ones_like(low_tokens)], dim=1)
        conditioning: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            conditioning[f"k{index}"], conditioning[f"v{index}"] = layer.cross_attention.keys_values(context)
        conditioning["key_mask"] = mask
        return conditioning

    def step(
        self,
        tokens: Tensor,
        conditioning: dict[str, Tensor],
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, codebook_size] of `tokens` [B, S]; `grids` and `positions` as in `MaskedTransformer.step`."""
        states = self.tokens(tokens) + self.positions
        for index, layer in enumerate(self.layers):
            key, value = conditioning[f"k{index}"], conditioning[f"v{index}"]
            states = layer(
                states, key, value, conditioning["key_mask"],
                grids if index == 0 else None, positions if index == len(self.layers) - 1 else None,
            )
        return self.head(self.norm(states))


def transformer_prefixes(tensors: dict[str, Tensor]) -> list[str]:
    """The prefixes under which `tensors` hold a transformer that predicts tokens (and no critic)."""
    prefixes = [name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)]
    return [prefix for prefix in prefixes if _rows(tensors.get(f"{prefix}to_logits.weight")) > 1]


def load_transformer(
    tensors: dict[str, Tensor], prefix: str, grid: tuple[int, int] | None, low_grid: tuple[int, int] | None, where: str
) -> LucidrainsTransformer:
    """The transformer under `prefix` in `tensors`. `grid` None means a square of all its positions.

    With `low_grid` it is for super-resolution, over base tokens of such a grid and of its own codebook's size.
    Raises `ForeignCheckpointError`, naming `where`.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in _TRAINED_SELF_CONDITIONING:
        if name in own and bool((own[name] != 1).any()):
            raise ForeignCheckpointError(
                f"{where}: trained with self-conditioning, which feeds a step's states into the next; the `step` graph "
                "of a bundle has no such input"
            )
    renamed = _renamed(own, where)
    shape = _shape(renamed, grid, low_grid, where)
    renamed["positions"] = renamed["positions"][: shape.positions]
    model = LucidrainsTransformer(shape)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()})
    except RuntimeError as error:
        raise ForeignCheckpointError(f"{where}: not such a transformer: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()


def _renamed(own: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in own.items():
        found = _LAYER.fullmatch(name)
        if name.endswith(".beta") and not bool(tensor.any()):
            # The original's norms have a shift that is a constant zero.
            continue
        if name in _OTHERS:
            renamed[_OTHERS[name]] = tensor
        elif found and found[3] in (_MLP if found[2] == "2" else _ATTENTION):
            part = (_MLP if found[2] == "2" else _ATTENTION)[found[3]]
            renamed[f"layers.{found[1]}.{_BLOCKS[found[2]]}.{part}"] = tensor
        elif not _UNUSED.fullmatch(name):
            raise ForeignCheckpointError(f"{where}: has {name}, which no such transformer has")
    return renamed


def _shape(
    renamed: dict[str, Tensor], grid: tuple[int, int] | None, low_grid: tuple[int, int] | None, where: str
) -> LucidrainsShape:
    try:
        rows, width = renamed["tokens.weight"].shape
        codes = _rows(renamed["head.weight"])
        length = _rows(renamed["positions"])
        _, heads, _, head_width = renamed["layers.0.self_attention.null"].shape
        hidden = _rows(renamed["layers.0.mlp.hidden_norm.weight"])
    except (KeyError, ValueError) as error:
        raise ForeignCheckpointError(f"{where}: no such transformer, or one without layers: {error}") from error
    if rows != codes + 1:
        raise ForeignCheckpointError(
            f"{where}: {rows} token embeddings and {codes} logits; a transformer of masked tokens has one embedding more, "
            "for the mask"
        )
    if grid is None:
        side = math.isqrt(length)
        if side**2 != length:
            raise ForeignCheckpointError(f"{where}: {length} positions are no square; the configuration must give `grid`")
        grid = (side, side)
    if grid[0] * grid[1] > length:
        raise ForeignCheckpointError(f"{where}: a grid of {grid[0]}×{grid[1]} has more than its {length} positions")
    projection = renamed.get("text_projection.weight")
    return LucidrainsShape(
        grid=grid,
        codebook_size=codes,
        text_width=width if projection is None else projection.shape[1],
        width=width,
        layers=1 + max(int(name.split(".")[1]) for name in renamed if name.startswith("layers.")),
        heads=heads,
        head_width=head_width,
        hidden=hidden,
        low_grid=low_grid,
        low_vocab_size=0 if low_grid is None else codes + 1,
    )


def _rows(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.ndim == 0 else tensor.shape[0]
