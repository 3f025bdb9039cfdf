"""Weighted next-token prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target, in nats, computed in float32.

    Parameters
    ----------
    logits : float tensor of shape (tokens, vocabulary)
        Already aligned: row i predicts target i.
    targets : int64 tensor of shape (tokens,)

    Returns
    -------
    float32 tensor of shape (tokens,)
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def weighted_ntp_loss(
    token_nll: torch.Tensor, weights: torch.Tensor, num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Σ weight · nll divided by the number of tokens.

    Parameters
    ----------
    token_nll, weights : float tensors of shape (tokens,)
        No gradient flows into the weights.
    num_tokens : int, optional
        Label tokens of the whole optimizer step, over all of its micro-batches and processes, so that accumulation and
        data parallelism give the loss of one large batch. Default: the tokens given here.

    Returns
    -------
    float tensor of shape ()
    """
    if token_nll.shape != weights.shape:
        raise ValueError(f"one weight per token: got {tuple(weights.shape)} for {tuple(token_nll.shape)} losses")
    return (token_nll * weights.detach()).sum() / (token_nll.numel() if num_tokens is None else num_tokens)
