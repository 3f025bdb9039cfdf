"""Objectives: what is known about the caption tokens of a batch goes in, one weight per token comes out.

An objective is one function, registered under its name and chosen by ``kind`` in a preset:

>>> @objective("surprise-only")
... def surprise_only(context: Context, threshold: float = 0.5) -> torch.Tensor:
...     return (context.ref_logprob.exp() < threshold).float()

Keyword parameters of the function become settings of the preset, checked by name.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prior.errors import UserError

# Snakemake reads the registry at the start of every job, where loading torch would take longer than all else.
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Context:
    """The caption tokens of one batch, flattened: every tensor has shape (tokens,).

    Attributes
    ----------
    token_nll
        The model's own negative log-likelihood of each token, in nats, without gradient.
    caption_index
        Which caption of the batch a token belongs to, counted from 0.
    token_ids
        The tokens themselves.
    ref_logprob
        Natural log of p_r, the reference LLM's probability of the token. None unless the objective asked for it
        at registration.
    relevant
        1.0 where the picture decides the token, 0.0 where it does not, NaN where nobody knows.
    blind_nll
        Computes `token_nll` with the picture left out: a second forward pass, paid for only when called.
    """

    token_nll: torch.Tensor
    caption_index: torch.Tensor
    token_ids: torch.Tensor
    ref_logprob: torch.Tensor | None
    relevant: torch.Tensor
    blind_nll: Callable[[], torch.Tensor]


Weighting = Callable[..., "torch.Tensor"]


@dataclass(frozen=True)
class Registered:
    """A weighting function and whether it reads `Context.ref_logprob`."""

    function: Weighting
    needs_scores: bool


REGISTRY: dict[str, Registered] = {}


def objective(name: str, *, needs_scores: bool = False) -> Callable[[Weighting], Weighting]:
    """Register a weighting function under `name`. Objectives that read p_r say ``needs_scores=True``."""

    def register(function: Weighting) -> Weighting:
        REGISTRY[name] = Registered(function, needs_scores)
        return function

    return register


def check_objective(name: str, kind: str, parameters: Mapping[str, object]) -> None:
    """Refuse an unknown kind or parameter of a configured objective; a preset holds only values of at least 0.

    Raises
    ------
    UserError
        Naming the nearest kind or the parameters that exist.
    """
    if kind not in REGISTRY:
        nearest = difflib.get_close_matches(kind, REGISTRY, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known kinds: {', '.join(sorted(REGISTRY))}"
        raise UserError(f"objectives.{name}.kind: there is no objective '{kind}'; {hint}")
    known = list(inspect.signature(REGISTRY[kind].function).parameters)[1:]
    for key in parameters:
        if key not in known:
            allowed = ", ".join(known) or "none"
            raise UserError(f"objectives.{name}.{key}: '{kind}' has no such parameter; its parameters: {allowed}")


@objective("ntp")
def ntp(context: Context) -> torch.Tensor:
    """Next-token prediction: every token weighs one."""
    return context.token_nll.new_ones(context.token_nll.shape)


@objective("prior", needs_scores=True)
def prior(context: Context, alpha: float = 1.0) -> torch.Tensor:
    """PRIOR: tokens that text alone does not predict weigh more (arXiv 2505.08971)."""
    assert context.ref_logprob is not None
    return prior_weights(context.ref_logprob, context.caption_index, alpha)


def prior_weights(ref_logprob: torch.Tensor, caption_index: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """PRIOR's weights k·w/Σw, normalised within each caption, with w = (1 − p_r)^α.

    Parameters
    ----------
    ref_logprob : float tensor of shape (tokens,)
        Natural log of the reference LLM's probability of each token given the caption's earlier tokens.
    caption_index : integer tensor of shape (tokens,)
        Which caption each token belongs to. Any integers, in any order.
    alpha : float, default 1.0
        How strongly predictable tokens are suppressed; 0 gives next-token prediction.

    Returns
    -------
    float32 tensor of shape (tokens,)
        Within a caption of k tokens the weights sum to k. A caption whose w are all zero gets ones.

    Raises
    ------
    ValueError
        If the shapes differ, a log-probability is positive or NaN, or alpha is negative, infinite or NaN.

    References
    ----------
    arXiv 2505.08971; the worked example in the picture of its authors' repository shows that Σ runs over one caption.
    """
    import torch

    if ref_logprob.ndim != 1 or ref_logprob.shape != caption_index.shape:
        raise ValueError(
            f"one log-probability and one caption index per token are needed: got shapes "
            f"{tuple(ref_logprob.shape)} and {tuple(caption_index.shape)}"
        )
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number of at least 0 (got {alpha})")
    if not bool((ref_logprob <= 1e-4).all()):
        raise ValueError("ref_logprob must hold natural logs of probabilities: none above 0, none NaN")
    # −expm1 keeps 1 − p exact where p is close to 1; rounding in the scores must not make it negative.
    surprise = (-torch.expm1(ref_logprob.float())).clamp_(0.0, 1.0) ** alpha
    _, caption = torch.unique(caption_index, return_inverse=True)
    captions = int(caption.max()) + 1 if caption.numel() else 0
    total = surprise.new_zeros(captions).index_add_(0, caption, surprise)[caption]
    size = torch.bincount(caption, minlength=captions).to(surprise)[caption]
    return torch.where(total > 0, size * surprise / total.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
