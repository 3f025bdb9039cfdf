"""Batched prediction: a checkpoint is loaded once and answers every benchmark, with and without its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from eval.tsv import options
from prior.corpus.questions import exchange, prompt
from prior.models.attention import pack, unpack
from prior.packing import Documents, Packer, Ragged, encode
from prior.scores import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prior.models import Architecture, Picture

Progress = Callable[[int], None]


def question_text(row: pd.Series) -> str:
    """What the model is asked: the text that VLMEvalKit's `build_prompt` makes of the row, in the tuning format."""
    return exchange(prompt(row["question"], options(row), row.get("hint", "")))


def open_image(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


@torch.no_grad()
def generate_answers(
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy answers to `prompts`, longest first, in left-padded batches.

    Parameters
    ----------
    images
        One picture for each prompt; None asks without pictures.

    Returns
    -------
    One string for each prompt, without surrounding white space.
    """
    model = architecture.model.eval()
    unpack(model)
    device = next(model.parameters()).device
    encoded = encode(tokenizer, prompts)["input_ids"]
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(encoded[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        pictures: list[Picture] = architecture.read([images[index] for index in chosen]) if images is not None else []
        prefixes = [picture.ids for picture in pictures] or [[]] * len(chosen)
        sequences = [
            [tokenizer.bos_token_id, *prefix, *encoded[index]] for index, prefix in zip(chosen, prefixes, strict=True)
        ]
        longest = max(map(len, sequences))
        ids = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for place, sequence in enumerate(sequences):
            ids[place, longest - len(sequence) :] = torch.tensor(sequence)
            mask[place, longest - len(sequence) :] = 1
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if pictures:
            inputs["pixel_values"] = architecture.collate(pictures).to(device)
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
        if progress:
            progress(len(chosen))
    return answers


def likelihood_answers(
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    choices: Sequence[Mapping[str, str]],
    images: Sequence[bytes],
    with_picture: bool,
) -> list[str]:
    """The letter of the option that the picture makes most likely, for models that only know how to caption.

    `choices` holds, for each question, the texts of its options by their letters.
    With its picture an option is ranked by log p(option | picture) − log p(option), so that common sentences have no
    advantage (pointwise mutual information, as in lm-evaluation-harness's ``acc_mutual_info``); without, by
    log p(option).
    """
    pack(architecture.model.eval())
    owner = [question for question, texts in enumerate(choices) for _ in texts]
    texts = [text for group in choices for text in group.values()]
    tokens = encode(tokenizer, texts)["input_ids"]
    documents = Documents(
        ids=[str(number) for number in range(len(texts))],
        targets=Ragged.of([[*ids, tokenizer.eos_token_id] for ids in tokens], np.int32),
        image=lambda index: images[owner[index]],
    )

    def total(part: Documents) -> np.ndarray:
        packer = Packer(part, tokenizer.bos_token_id, architecture)
        return np.add.reduceat(token_logprobs(architecture.model, packer), documents.targets.offsets[:-1])

    ranking = total(documents.without_pictures())
    if with_picture:
        ranking = total(documents) - ranking
    first = np.cumsum([0, *(len(group) for group in choices)])
    return [list(group)[int(np.argmax(ranking[first[i] : first[i + 1]]))] for i, group in enumerate(choices)]


def predict(
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    frame: pd.DataFrame,
    answer: str,
    with_picture: bool,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A benchmark's rows without their pictures, plus a ``prediction`` column.

    Parameters
    ----------
    answer
        ``generate`` or ``likelihood``, the preset's setting for this benchmark.
    """
    if answer == "likelihood":
        choices = [options(row) for _, row in frame.iterrows()]
        images = [base64.b64decode(encoded) for encoded in frame["image"]]
        predictions = likelihood_answers(architecture, tokenizer, choices, images, with_picture)
        if progress:
            progress(len(frame))
    else:
        prompts = [question_text(row) for _, row in frame.iterrows()]
        pictures = [open_image(encoded) for encoded in frame["image"]] if with_picture else None
        predictions = generate_answers(architecture, tokenizer, prompts, pictures, batch_size, max_new_tokens, progress)
    return frame.drop(columns="image").assign(prediction=predictions)


def degenerate(frame: pd.DataFrame, kind: str, seed: int) -> pd.DataFrame | None:
    """What answers without a model look like; None where `kind` does not apply to the benchmark.

    `kind` is ``random`` (uniform over the possible answers), ``always_yes``, ``always_no`` or ``always_A``.
    """
    choices = [options(row) for _, row in frame.iterrows()]
    multiple_choice = any(choices)
    if kind == "random":
        rng = np.random.default_rng([seed, 37])
        predictions = [tuple(texts or ("Yes", "No"))[int(rng.integers(len(texts) or 2))] for texts in choices]
    elif (kind == "always_A") != multiple_choice:
        return None
    else:
        predictions = [{"always_yes": "Yes", "always_no": "No", "always_A": "A"}[kind]] * len(frame)
    return frame.drop(columns="image").assign(prediction=predictions)
