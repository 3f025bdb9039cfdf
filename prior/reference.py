"""The text-only reference LLM: the base LLM trained on the captions without their pictures.

With ``cross_fit: k`` there are k of them, each trained on the other folds, so that no caption is scored by a reference
that has seen it.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prior import config, processes
from prior.files import whole, write_json
from prior.models.attention import pack, unpack
from prior.packing import Documents, Packer, concatenate, repeat_order, select
from prior.scores import token_logprobs
from prior.state import private

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def folds(count: int, k: int, seed: int) -> np.ndarray:
    """The fold of each caption: shape (count,), values 0 … k−1, sizes equal within one; all zero without folds."""
    if k == 0:
        return np.zeros(count, dtype=np.int64)
    return np.random.default_rng([seed, 19]).permutation(count) % k


def train_reference(
    llm: Path,
    tokenizer: PreTrainedTokenizerFast,
    train: Documents,
    val: Documents,
    settings: config.Reference,
    out: Path,
    state_dir: Path,
    fingerprints: dict[str, str],
    extra: Documents | None = None,
) -> dict[str, Any]:
    """Train the reference LLM, or one for each fold, and report how well it knows captions that it has (not) seen.

    `out` becomes a Hugging Face folder, or holds ``fold0``, ``fold1``, … with cross-fitting; ``quality.json`` in it has
    perplexity and mean p_r on the captions trained on and on held-out ones. Beside each model lies its ``log.jsonl``.
    `extra` are captions without pictures.
    """
    from transformers import AutoModelForCausalLM

    from prior.training import LOG
    from prior.training import train as run

    fold = folds(len(train), settings.cross_fit, settings.seed)
    quality: dict[str, Any] = {}
    made_from: dict[str, Any] = {"settings": settings, "inputs": fingerprints}
    with private(state_dir, **made_from), processes.first_only(lambda: whole(out)) as folder:
        for k in range(max(settings.cross_fit, 1)):
            seen = np.flatnonzero(fold != k) if settings.cross_fit else np.arange(len(train))
            documents = train if extra is None else concatenate(train, extra)
            first = np.concatenate([seen, np.arange(len(train), len(documents))])
            first = np.random.default_rng([settings.seed, 23]).permutation(first)
            model = AutoModelForCausalLM.from_pretrained(llm)
            order = repeat_order(first, settings.training.epochs, settings.seed)
            packer = Packer(documents, tokenizer.bos_token_id)
            state = state_dir / f"fold{k}"
            run(
                model,
                packer,
                order,
                settings.training,
                seed=settings.seed,
                state_dir=state,
                keep=settings.cross_fit > 0,
            )
            if folder is None:
                continue
            pack(model)
            model.eval()
            name = f"fold{k}" if settings.cross_fit else "all"
            unseen = np.flatnonzero(fold == k) if settings.cross_fit else None
            quality[name] = evaluate(model, tokenizer, train, val, seen, unseen)
            unpack(model)
            place = folder / name if settings.cross_fit else folder
            model.save_pretrained(place)
            shutil.copy(state / LOG, place)
        if folder is not None:
            write_json(folder / "quality.json", quality)
    return quality


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Documents,
    val: Documents,
    seen: np.ndarray,
    unseen: np.ndarray | None,
) -> dict[str, dict[str, float]]:
    """Perplexity and mean p_r on captions that the reference was trained on and on others, side by side."""
    logprob = token_logprobs(model, Packer(train, tokenizer.bos_token_id))
    owner = np.repeat(np.arange(len(train)), train.targets.lengths)
    parts = {"trained_on": logprob[np.isin(owner, seen)]}
    if unseen is not None:
        parts["left_out_fold"] = logprob[np.isin(owner, unseen)]
    parts["held_out"] = token_logprobs(model, Packer(val, tokenizer.bos_token_id))
    return {
        name: {
            "perplexity": math.exp(-float(values.mean(dtype=np.float64))),
            "mean_p_r": float(np.exp(values).mean(dtype=np.float64)),
            "tokens": int(len(values)),
        }
        for name, values in parts.items()
    }


def score(
    reference: Path,
    tokenizer: PreTrainedTokenizerFast,
    train: Documents,
    settings: config.Reference,
    progress: Any = None,
) -> np.ndarray:
    """log p_r of every target token of the training captions, each by a reference that the setting allows."""
    from transformers import AutoModelForCausalLM

    fold = folds(len(train), settings.cross_fit, settings.seed)
    result = np.empty(len(train.targets.values), dtype=np.float32)
    owner = np.repeat(np.arange(len(train)), train.targets.lengths)
    for k in range(max(settings.cross_fit, 1)):
        folder = reference / f"fold{k}" if settings.cross_fit else reference
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        pack(model)
        part = select(train, np.flatnonzero(fold == k))
        result[fold[owner] == k] = token_logprobs(model, Packer(part, tokenizer.bos_token_id), progress=progress)
    return result
