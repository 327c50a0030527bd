"""The training loss: cross-entropy at masked positions, computed nowhere else."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .model import Conditioning, MaskedTransformer


@dataclass
class MaskedLoss:
    """Loss of a batch, with what its log lines need. M is the number of masked positions in the batch."""

    loss: Tensor
    """What is minimised, a scalar: label-smoothed cross-entropy over M."""
    cross_entropy: Tensor
    """[M] f32, without smoothing, detached."""
    correct: Tensor
    """[M] bool: the likeliest token is the true one."""
    ratio: Tensor
    """[M] f32: the share of its row that is masked."""


def masked_loss(
    model: MaskedTransformer, tokens: Tensor, mask: Tensor, conditioning: Conditioning, smoothing: float
) -> MaskedLoss:
    """Loss of predicting `tokens` [B, S] where `mask` [B, S] is set from the tokens where it is not."""
    visible = torch.where(mask, model.config.mask_id, tokens)
    states = model.hidden(visible, conditioning)
    log_probabilities = functional.log_softmax(model.logits(states[mask]).float(), dim=-1)
    truth = tokens[mask]
    cross_entropy = -log_probabilities.gather(1, truth[:, None])[:, 0]
    loss = cross_entropy.mean()
    if smoothing > 0:
        loss = (1 - smoothing) * loss - smoothing * log_probabilities.mean()
    with torch.no_grad():
        correct = log_probabilities.argmax(dim=-1) == truth
        ratio = mask.float().mean(dim=1, keepdim=True).expand_as(mask)[mask]
    return MaskedLoss(loss, cross_entropy.detach(), correct, ratio)
