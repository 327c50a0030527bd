"""T5 encoders as Hugging Face stores them: v1.0 (ReLU), v1.1 and mT5 (gated GELU), of any size.

`config.json` gives the sizes. Shapes must agree with it, every tensor of the encoder must be known, and a decoder's are
left alone.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import attend
from ..text.encoder import EncoderLayer, EncoderShape, T5Encoder
from .weights import ForeignCheckpointError, as_f32, read_config, read_folder

EPSILON = 1e-6
"""Of the norms; `text.encoder` has it built in."""

_LAYER = re.compile(r"encoder\.block\.(\d+)\.layer\.([01])\.(.+)\.weight")
_ATTENTION = {
    "SelfAttention.q": "query", "SelfAttention.k": "key", "SelfAttention.v": "value", "SelfAttention.o": "output",
    "layer_norm": "attention_norm",
}
_GATED = {
    "DenseReluDense.wi_0": "gate", "DenseReluDense.wi_1": "up", "DenseReluDense.wo": "down",
    "layer_norm": "feed_forward_norm",
}
_UNGATED = {"DenseReluDense.wi": "up", "DenseReluDense.wo": "down", "layer_norm": "feed_forward_norm"}
_POSITIONS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


class UngatedEncoderLayer(EncoderLayer):
    """A layer of T5 v1.0: a perceptron with ReLU in the place of the gated one."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        del self.gate

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """`states` [B, L, width], `bias` [B, heads, L, L] → [B, L, width]."""
        normal = self.attention_norm(states)
        mixed = attend(self.query(normal), self.key(normal), self.value(normal), self.heads, bias=bias, scale=1.0)
        states = states + self.output(mixed)
        return states + self.down(functional.relu(self.up(self.feed_forward_norm(states))))


def load_t5(folder: Path, scratch: Path) -> T5Encoder:
    """The encoder in `folder` (`config.json` beside its weights), in f32.

    `scratch` is a folder with room for the weights in f32, used where they are stored in another type.
    Raises `ForeignCheckpointError` for what is no T5 encoder, or a form of it that is not known.
    """
    config = read_config(folder / "config.json")
    shape, gated = _shape(config, folder)
    # Without memory: the checkpoint's own tensors become the parameters.
    with torch.device("meta"):
        encoder = T5Encoder(shape)
        if not gated:
            encoder.layers = nn.ModuleList(UngatedEncoderLayer(shape) for _ in range(shape.layers))
    tensors = as_f32(_renamed(read_folder(folder), gated, folder), scratch)
    try:
        encoder.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ForeignCheckpointError(f"{folder}: the weights do not fit config.json: {reason}") from error
    return encoder.requires_grad_(False).eval()


def _shape(config: dict[str, Any], folder: Path) -> tuple[EncoderShape, bool]:
    """Sizes, and whether the perceptrons are gated."""
    where = folder / "config.json"
    kind = config.get("model_type")
    if kind not in ("t5", "mt5"):
        raise ForeignCheckpointError(f"{where}: model_type is {kind!r}; T5 encoders are 't5' and 'mt5'")
    forms = {"relu": False, "gated-gelu": True}
    form = config.get("feed_forward_proj", "relu")
    if form not in forms:
        raise ForeignCheckpointError(f"{where}: feed_forward_proj is {form!r}; known are {', '.join(forms)}")
    if config.get("layer_norm_epsilon", EPSILON) != EPSILON:
        raise ForeignCheckpointError(f"{where}: layer_norm_epsilon is {config['layer_norm_epsilon']}, not {EPSILON}")
    if config.get("pad_token_id", 0) != 0:
        raise ForeignCheckpointError(f"{where}: pad_token_id is {config['pad_token_id']}, not 0")
    try:
        shape = EncoderShape(
            vocabulary=int(config["vocab_size"]),
            width=int(config["d_model"]),
            layers=int(config["num_layers"]),
            heads=int(config["num_heads"]),
            head_width=int(config["d_kv"]),
            hidden=int(config["d_ff"]),
            buckets=int(config.get("relative_attention_num_buckets", 32)),
            furthest=int(config.get("relative_attention_max_distance", 128)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignCheckpointError(f"{where}: a size is missing or no number: {error}") from error
    return shape, forms[form]


def _renamed(tensors: dict[str, Tensor], gated: bool, folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors under the names that `T5Encoder` gives them."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in ("shared.weight", "encoder.embed_tokens.weight"):
            # Files have either, or both with the same contents.
            renamed.setdefault("embedding.weight", tensor)
        elif name.startswith("encoder."):
            renamed[_new_name(name, gated, folder)] = tensor
    return renamed


def _new_name(name: str, gated: bool, folder: Path) -> str:
    if name == _POSITIONS:
        return "positions.table.weight"
    if name == "encoder.final_layer_norm.weight":
        return "norm.weight"
    found = _LAYER.fullmatch(name)
    names = {"0": _ATTENTION, "1": _GATED if gated else _UNGATED}[found[2]] if found else {}
    if found is None or found[3] not in names:
        raise ForeignCheckpointError(f"{folder}: the encoder has {name}, which no T5 encoder of this form has")
    return f"layers.{found[1]}.{names[found[3]]}.weight"
