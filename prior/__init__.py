"""PRIOR for other people's training code: the names to import, each loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prior.auto_classes import register_ulvlm

if TYPE_CHECKING:
    from prior.library import CaptionScores, score_captions, weighted_causal_lm_loss
    from prior.loss import token_nll, weighted_ntp_loss
    from prior.weighting import prior_weights

__all__ = [
    "CaptionScores",
    "prior_weights",
    "score_captions",
    "token_nll",
    "weighted_causal_lm_loss",
    "weighted_ntp_loss",
]

_MODULES = {
    "CaptionScores": "prior.library",
    "prior_weights": "prior.weighting",
    "score_captions": "prior.library",
    "token_nll": "prior.loss",
    "weighted_causal_lm_loss": "prior.library",
    "weighted_ntp_loss": "prior.loss",
}


# Every job of the pipeline imports this package; most of them never need torch.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'prior' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


register_ulvlm()
