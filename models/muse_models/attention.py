"""Multi-head attention over `[B, positions, width]` tensors: PyTorch's kernel, or one fused ONNX node.

Everything that attends (both transformers, the text encoder) goes through `attend`, so that the exported graphs hold
`com.microsoft.MultiHeadAttention` nodes, which ONNX Runtime runs as one kernel on the CPU and on CUDA, and not the
dozen small operators that a traced softmax would become.
"""

import torch
from torch import Tensor
from torch.nn import functional


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of `query` [B, Q, W] over `key` and `value` [B, K, W], as [B, Q, W].

    `key_mask` [B, K] is non-zero where a key may be seen. A row needs at least one such key: a softmax over none is
    undefined, and kernels differ in what they make of it. `bias` [B or 1, heads, Q, K] is added to the scores, `scale`
    multiplies them (1/sqrt of the head's width if None; T5 uses 1).
    """
    if torch.compiler.is_exporting():
        return _fused_node(query, key, value, heads, key_mask, bias, scale)
    if key_mask is not None:
        unseen = torch.where(key_mask != 0, 0.0, float("-inf"))[:, None, None, :].to(query.dtype)
        bias = unseen if bias is None else bias + unseen
    if bias is not None:
        bias = bias.to(query.dtype)
    query, key, value = (_split(states, heads) for states in (query, key, value))
    mixed = (_written_out if query.requires_grad else functional.scaled_dot_product_attention)(
        query, key, value, bias, scale=scale
    )
    return mixed.transpose(1, 2).flatten(2)


def _written_out(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """What PyTorch's fused kernel computes, in single operators: on CPUs its backward pass takes a quarter of the time.

    Inputs and output are [B, heads, P, W / heads].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(dim=-1), value)


def _split(states: Tensor, heads: int) -> Tensor:
    """[B, P, W] to [B, heads, P, W / heads]."""
    batch, positions, width = states.shape
    return states.view(batch, positions, heads, width // heads).transpose(1, 2)


def _fused_node(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    key_mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    attributes: dict[str, int | float] = {"num_heads": heads}
    if scale is not None:
        attributes["scale"] = float(scale)
    # Input order of the operator: query, key, value, bias of the projections, key padding mask, attention bias.
    # The mask must be int32.
    mask = None if key_mask is None else key_mask.to(torch.int32)
    inputs: list[Tensor | None] = [query, key, value, None, mask, bias]
    while inputs[-1] is None:
        inputs.pop()
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        inputs,
        attributes,
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
