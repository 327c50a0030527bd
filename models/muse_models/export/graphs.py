"""The graphs of a bundle as PyTorch modules: each has the inputs and outputs that `docs/bundle.md` names."""

import copy
import itertools
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..text.encoder import T5Encoder
from ..tokenizer.model import ChannelNorm
from .parts import StageModel


@dataclass(frozen=True)
class Graph:
    """A module to export with example inputs; every axis 0 is dynamic, and the batch unless `first_axes` says otherwise."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    length_axis: tuple[str, ...] = ()
    """Inputs whose axis 1, the length of the text, is dynamic as well."""
    first_axes: dict[str, str] = field(default_factory=dict)
    """Names of inputs' axes 0 that are not the batch."""


class TabulatedPositions(nn.Module):
    """T5's relative position biases for up to `length` tokens, computed at export.

    The buckets are logarithms rounded down. Two libraries may round differently where a logarithm is a whole number,
    so the graph must not compute them again.
    """

    def __init__(self, encoder: T5Encoder, length: int) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("table", encoder.positions(length, torch.device("cpu")).clone())

    def forward(self, length: int, device: torch.device) -> Tensor:
        return self.table[:, :, :length, :length]


class TextEncoderGraph(nn.Module):
    """`input_ids`, `attention_mask` to `embedding`."""

    def __init__(self, encoder: T5Encoder, max_length: int) -> None:
        super().__init__()
        self.embedding, self.layers, self.norm = encoder.embedding, encoder.layers, encoder.norm
        self.positions = TabulatedPositions(encoder, max_length)

    # The encoder's own forward pass, with the positions above in the place of its own.
    forward = T5Encoder.forward


class ConditionGraph(nn.Module):
    """`text`, `text_mask` (and `low_tokens`) to the conditioning, in the model's order of names."""

    def __init__(self, model: StageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        conditioning = self.model.condition(*inputs)
        return tuple(conditioning[name] for name in self.model.conditioning_names())


class StepGraph(nn.Module):
    """`tokens`, `grids`, `positions` and the conditioning to `logits`."""

    def __init__(self, model: StageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, grids: Tensor, positions: Tensor, *conditioning: Tensor) -> Tensor:
        named = dict(zip(self.model.conditioning_names(), conditioning, strict=True))
        return self.model.step(tokens, named, grids, positions)


class WholeStepGraph(nn.Module):
    """`tokens` and the conditioning to `logits` of every position."""

    def __init__(self, model: StageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *conditioning: Tensor) -> Tensor:
        return self.model.step(tokens, dict(zip(self.model.conditioning_names(), conditioning, strict=True)))


class InvariantChannelNorm(nn.Module):
    """A `ChannelNorm` whose mean over channels is a 1×1 convolution.

    ONNX Runtime sums a `ReduceMean` over channels in an order that depends on the batch, and a picture would then
    depend, in its last bits, on the pictures decoded with it. Convolutions work picture by picture.
    """

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        channels = len(norm.weight)
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 1 / channels))

    def forward(self, features: Tensor) -> Tensor:
        mean_square = functional.conv2d(features.square(), self.mean)
        return features * torch.rsqrt(mean_square + 1e-5) * self.weight[None, :, None, None]


def batch_invariant(tokenizer: nn.Module) -> nn.Module:
    """A copy of an image tokenizer that computes each picture alike in every batch."""
    tokenizer = copy.deepcopy(tokenizer)
    for module in list(tokenizer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ChannelNorm):
                setattr(module, name, InvariantChannelNorm(child))
    return tokenizer


class DecoderGraph(nn.Module):
    """`tokens` to `image`, from any image tokenizer with `decode`."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = batch_invariant(tokenizer)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens)


class EncoderGraph(nn.Module):
    """`image` to `tokens`, from any image tokenizer with `encode`."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = batch_invariant(tokenizer)

    def forward(self, image: Tensor) -> Tensor:
        return self.tokenizer.encode(image)


def text_graph(encoder: T5Encoder, max_length: int) -> Graph:
    """The text encoder; examples are of two texts of different length, ids drawn at random."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, encoder.shape.vocabulary, (2, max_length), generator=generator)
    mask = (torch.arange(max_length)[None] < torch.tensor([[max_length], [max(2, max_length // 3)]])).long()
    return Graph(
        TextEncoderGraph(encoder, max_length),
        {"input_ids": ids * mask, "attention_mask": mask},
        ["embedding"],
        length_axis=("input_ids", "attention_mask"),
    )


def condition_graph(model: StageModel, text: Tensor, text_mask: Tensor) -> Graph:
    """The condition graph; `text` [2, L, D] and `text_mask` [2, L] are the examples."""
    inputs = {"text": text, "text_mask": text_mask}
    config = model.config
    if config.low_grid is not None:
        generator = torch.Generator().manual_seed(2)
        cells = config.low_grid[0] * config.low_grid[1]
        inputs["low_tokens"] = torch.randint(0, config.low_vocab_size, (2, cells), generator=generator)
    return Graph(ConditionGraph(model), inputs, model.conditioning_names())


def step_graph(model: StageModel, condition: Graph, whole: bool = False) -> Graph:
    """The step graph; the examples are half-masked grids with the conditioning of `condition`'s examples.

    There are three rows, the first and the last of one grid, and the positions are those that are masked. With `whole` it
    has neither of the optional inputs, and two rows.
    """
    generator = torch.Generator().manual_seed(3)
    config = model.config
    tokens = torch.randint(0, config.codebook_size, (2, config.positions), generator=generator)
    # Not torch's numbers: how many are masked must be known where tensors have shapes and no contents (`export.random`).
    cells = random.Random(3)
    masked = [[cells.random() < 0.5 for _ in range(config.positions)] for _ in range(2)]
    grids = [0, 1, 0]
    with torch.no_grad():
        conditioning = condition.module(*condition.inputs.values())
    inputs = {"tokens": torch.where(torch.tensor(masked), config.mask_id, tokens)}
    if whole:
        inputs |= dict(zip(condition.outputs, conditioning, strict=True))
        return Graph(WholeStepGraph(model), inputs, ["logits"])
    inputs["grids"] = torch.tensor(grids)
    of_rows = itertools.chain.from_iterable(masked[grid] for grid in grids)
    inputs["positions"] = torch.tensor([position for position, is_masked in enumerate(of_rows) if is_masked])
    inputs |= {name: values[[0, 1, 1]] for name, values in zip(condition.outputs, conditioning, strict=True)}
    return Graph(StepGraph(model), inputs, ["logits"], first_axes={"tokens": "G", "positions": "M"})


def decoder_graph(tokenizer: nn.Module, codebook_size: int, positions: int) -> Graph:
    """The decoder; the examples are random tokens."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, codebook_size, (2, positions), generator=generator)
    return Graph(DecoderGraph(tokenizer), {"tokens": tokens}, ["image"])


def encoder_graph(tokenizer: nn.Module, image: Tensor) -> Graph:
    """The encoder; `image` [2, 3, H, W] are the examples."""
    return Graph(EncoderGraph(tokenizer), {"image": image}, ["tokens"])
