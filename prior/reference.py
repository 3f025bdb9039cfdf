"""The text-only reference LLM: the base LLM trained on the captions without their pictures.

With ``cross_fit: k`` there are k of them, each trained on the other folds, so that no caption is scored by a reference
that has seen it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prior import config, processes
from prior.config.jobs import ParallelJob
from prior.documents import Documents, concatenate, select
from prior.files import whole, write_json
from prior.hashing import uniform
from prior.models.attention import pack, unpack
from prior.models.weights import export, gather, load_llm
from prior.packing import Packer, repeat_order
from prior.scores import token_logprobs
from prior.state import private

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def folds(ids: Sequence[str], k: int, seed: int) -> np.ndarray:
    """The fold of each caption, 0 … k−1, by the SHA-256 of its id; all zero without folds."""
    if k == 0:
        return np.zeros(len(ids), dtype=np.int64)
    return np.fromiter((int(k * uniform(f"fold {seed}:{name}")) for name in ids), np.int64, len(ids))


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
    job: ParallelJob | None = None,
) -> dict[str, Any]:
    """Train the reference LLM, or one for each fold, and report how well it knows captions that it has (not) seen.

    `out` becomes a Hugging Face folder, or holds ``fold0``, ``fold1``, … with cross-fitting; ``quality.json`` in it has
    perplexity and mean p_r on captions trained on and on held-out ones. Beside each model lies its ``log.jsonl``.
    `extra` are captions without pictures.
    """
    from prior.training import LOG
    from prior.training import train as run

    fold = folds(train.ids, settings.cross_fit, settings.seed)
    quality: dict[str, Any] = {}
    made_from: dict[str, Any] = {"settings": settings, "inputs": fingerprints}
    with private(state_dir, **made_from), processes.first_only(lambda: whole(out)) as folder:
        for k in range(max(settings.cross_fit, 1)):
            seen = np.flatnonzero(fold != k) if settings.cross_fit else np.arange(len(train))
            documents = train if extra is None else concatenate(train, extra)
            first = np.concatenate([seen, np.arange(len(train), len(documents))])
            first = np.random.default_rng([settings.seed, 23]).permutation(first)
            model = load_llm(llm, fsdp=job is not None and job.fsdp)
            if settings.lora:
                adapt(model, settings.lora)
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
                scaling=job,
            )
            pack(model)
            model.eval()
            name = f"fold{k}" if settings.cross_fit else "all"
            measured = {"trained_on": select(train, seen[: settings.quality_captions])}
            if settings.cross_fit:
                measured["left_out_fold"] = select(train, np.flatnonzero(fold == k)[: settings.quality_captions])
            quality[name] = evaluate(model, tokenizer, val, measured)
            unpack(model)
            place = folder and (folder / name if settings.cross_fit else folder)
            dtype = torch.bfloat16 if settings.training.bf16 else torch.float32
            if settings.lora:
                export_merged(model, llm, settings.lora, place, dtype)
            else:
                export(model, place, dtype)
            if place is not None:
                shutil.copy(state / LOG, place)
        if folder is not None:
            write_json(folder / "quality.json", quality)
    return quality


def adapt(model: PreTrainedModel, settings: config.Lora) -> Any:
    """Freeze a causal LM and put adapters beside its linear layers, in place (peft)."""
    from peft import LoraConfig, LoraModel

    adapters = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear")
    return LoraModel(model, adapters, "default")


def export_merged(
    model: PreTrainedModel, llm: Path, settings: config.Lora, folder: Path | None, dtype: torch.dtype
) -> None:
    """Write an LLM with its adapters added to the weights; the first process writes, all have to call it."""
    state = gather(model)
    if folder is None or not processes.first():
        return
    plain = load_llm(llm)
    adapters = adapt(plain, settings)
    plain.load_state_dict(state)
    merged = adapters.merge_and_unload()
    merged.to(dtype).save_pretrained(folder)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    val: Documents,
    captions: dict[str, Documents],
) -> dict[str, dict[str, float]]:
    """Perplexity and mean p_r on captions that the reference was trained on and on others, side by side."""
    found = {}
    for name, documents in (captions | {"held_out": val}).items():
        values = token_logprobs(model, Packer(documents, tokenizer.bos_token_id))
        found[name] = {
            "perplexity": math.exp(-float(values.mean(dtype=np.float64))),
            "mean_p_r": float(np.exp(values).mean(dtype=np.float64)),
            "tokens": int(len(values)),
        }
    return found


def score(
    reference: Path,
    tokenizer: PreTrainedTokenizerFast,
    documents: Documents,
    settings: config.Reference,
    progress: Any = None,
) -> np.ndarray:
    """log p_r of every token of some training captions, each by a reference that the setting allows."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fold = folds(documents.ids, settings.cross_fit, settings.seed)
    lengths = documents.targets.lengths
    owner = np.repeat(np.arange(len(documents)), lengths)
    result = np.empty(int(lengths.sum()), dtype=np.float32)
    for k in range(max(settings.cross_fit, 1)):
        if not (fold == k).any():
            continue
        folder = reference / f"fold{k}" if settings.cross_fit else reference
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
        pack(model)
        part = select(documents, np.flatnonzero(fold == k))
        result[fold[owner] == k] = token_logprobs(model, Packer(part, tokenizer.bos_token_id), progress=progress)
    return result
