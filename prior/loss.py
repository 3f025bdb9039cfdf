"""Weighted next-token prediction: a loss for each label from the model's forward, the mean of weighted losses.

The LM head is where training a language model on a large vocabulary spends its memory. Here it gives the loss of each
label at once: one buffer of logits, turned in place into what the backward pass needs, which is then two matrix
products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

# Logits that are worked on at a time: matrix products want many rows, scoring wants to hold few.
CHUNK_ELEMENTS = 2**24


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


def label_nll(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`token_nll` of ``hidden @ weight.T``, without keeping more than one buffer of that shape.

    Parameters
    ----------
    hidden : float tensor of shape (tokens, width)
        What the LM head reads where a label is predicted.
    weight : float tensor of shape (vocabulary, width)
        The LM head's; it has no bias.
    targets : int64 tensor of shape (tokens,)

    Returns
    -------
    float32 tensor of shape (tokens,); float64 if `hidden` is
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    # Within a function of autograd nothing tells whether gradients are off around it.
    learning = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    nll: torch.Tensor = _LabelNLL.apply(hidden, weight, targets, learning)
    return nll


class _LabelNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, learning: bool
    ) -> torch.Tensor:
        tokens, vocabulary = len(targets), len(weight)
        rows = max(1, CHUNK_ELEMENTS // vocabulary)
        # d nll / d logits of all tokens, softmax minus one-hot; or room for the logits of one chunk after the other.
        slope = hidden.new_empty(tokens if learning else min(tokens, rows), vocabulary)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        nll = hidden.new_empty(tokens, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, tokens, rows):
                label = targets[start : start + rows, None]
                place = start if learning else 0
                logits = torch.mm(hidden[start : start + rows], weight.T, out=slope[place : place + len(label)])
                logprob = logits.to(exact)
                # Softmax kernels go row by row and have read an element when they write it: input may be output.
                torch.log_softmax(logprob, -1, out=logprob)
                nll[start : start + rows] = -logprob.gather(1, label)[:, 0]
                if learning:
                    logprob.exp_().scatter_add_(1, label, logprob.new_full(label.shape, -1.0))
                    if logprob is not logits:
                        logits.copy_(logprob)
        if learning:
            ctx.save_for_backward(hidden, weight, slope)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden, weight, slope = ctx.saved_tensors
        scale = grad[:, None].to(hidden.dtype)
        # Scaling the narrow factor spares a pass over the wide one.
        to_hidden = (slope @ weight) * scale if ctx.needs_input_grad[0] else None
        to_weight = slope.T @ (hidden * scale) if ctx.needs_input_grad[1] else None
        return to_hidden, to_weight, None, None


def caption_nll(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label of a packed row, in nats.

    It goes through the model's own ``forward``, inside which data-parallel and sharding wrappers have the weights in
    place and notice what is used; only there does the LM head give losses in place of logits.

    Parameters
    ----------
    model
        A causal LM or LVLM of transformers, wrapped or not.
    inputs
        What its ``forward`` takes; ``logits_to_keep`` marks the positions that predict the labels.
    targets : int64 tensor of shape (tokens,)
        The labels, in the order of these positions.

    Returns
    -------
    float32 tensor of shape (tokens,)
    """
    inner: Any = getattr(model, "module", model)
    head = inner.get_output_embeddings()
    if head.bias is None:
        with _giving_nll(head, targets) as given:
            nll = model(**inputs, use_cache=False).logits
        if nll is given[0] or torch.equal(nll, given[0]):
            return nll
        # The model changes what its head gives, as Gemma 2 does with a soft cap.
    return token_nll(model(**inputs, use_cache=False).logits, targets)


@contextmanager
def _giving_nll(head: Any, targets: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Let an LM head give the losses of `targets`; what it gave is in the list."""
    given: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        given.append(label_nll(hidden, head.weight, targets))
        return given[0]

    # On the instance, it comes before the method of its class.
    head.forward = forward
    try:
        yield given
    finally:
        del head.forward


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
