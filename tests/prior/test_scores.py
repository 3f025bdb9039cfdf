"""Scores: stored and read back, refused where they do not fit, and cross-fitted without a leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prior import config
from prior.documents import Documents, tokenize_captions
from prior.errors import UserError
from prior.models.attention import pack
from prior.packing import Packer
from prior.reference import folds, score, train_reference
from prior.scores import align, token_logprobs, write_scores
from prior.tokens import metadata, read_tokens, write_tokens

PRINTS = {"corpus": "c", "tokenizer": "t"}


def test_shards_of_scores_lie_beside_the_shards_of_tokens(records: Any, tokenizer: Any, tmp_path: Path) -> None:
    parts = [records.select(range(9)), records.select(range(9, 24))]
    tokens = [tmp_path / f"tokens-{k}.arrow" for k in range(2)]
    scores = [tmp_path / f"scores-{k}.arrow" for k in range(2)]
    logprob = []
    for part, made, path in zip(parts, tokens, scores, strict=True):
        write_tokens(made, part, tokenizer, f"corpus {len(part)}")
        documents = read_tokens([made])
        logprob.append(-np.random.default_rng(0).exponential(1.0, len(documents.targets.values)).astype(np.float32))
        write_scores(path, documents, logprob[-1], metadata(made))
    whole, plain = read_tokens(tokens), tokenize_captions(records, tokenizer)
    assert list(whole.ids) == list(plain.ids) and whole.image_size(11) == plain.image_size(11)
    for name in ("targets", "relevant"):
        np.testing.assert_array_equal(getattr(whole, name).values, getattr(plain, name).values)
    np.testing.assert_array_equal(align(tokens, scores).values, np.concatenate(logprob))
    with pytest.raises(UserError, match="another corpus"):
        align(tokens, scores[::-1])
    with pytest.raises(UserError, match="1 shards of scores for 2"):
        align(tokens, scores[:1])
    documents = read_tokens(tokens[:1])

    def refused(match: str, changed: Documents, **prints: str) -> None:
        write_scores(tmp_path / "other.arrow", changed, logprob[0], metadata(tokens[0]) | prints)
        with pytest.raises(UserError, match=match):
            align(tokens[:1], [tmp_path / "other.arrow"])

    refused("another tokenizer", documents, tokenizer="u")
    refused("in another order", replace(documents, ids=documents.ids[::-1]))
    values = documents.targets.values.copy()
    values[4] += 1
    refused("its tokens differ", replace(documents, targets=documents.targets.beside(values)))


@pytest.mark.parametrize("cross_fit", [0, 3])
def test_a_reference_scores_what_its_folds_allow(
    cross_fit: int, llm: Path, records: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    documents = tokenize_captions(records, tokenizer, image=False)
    recipe = config.Training(learning_rate=1e-2, epochs=100, row_tokens=200)
    settings = config.Reference(training=recipe, cross_fit=cross_fit)
    out = tmp_path / "reference"
    quality = train_reference(llm, tokenizer, documents, documents, settings, out, tmp_path / "state", PRINTS)
    scores = score(out, tokenizer, documents, settings)
    fold = np.repeat(folds(documents.ids, cross_fit, settings.seed), documents.targets.lengths)
    for k in range(max(cross_fit, 1)):
        model = AutoModelForCausalLM.from_pretrained(out / f"fold{k}" if cross_fit else out).eval()
        pack(model)
        alone = token_logprobs(model, Packer(documents, tokenizer.bos_token_id))
        np.testing.assert_allclose(scores[fold == k], alone[fold == k], rtol=1e-5, atol=1e-5)
        if cross_fit:
            # Trained for many epochs, a fold's reference knows its own captions by heart and not those left out.
            assert (
                quality[f"fold{k}"]["trained_on"]["mean_p_r"] > quality[f"fold{k}"]["left_out_fold"]["mean_p_r"] + 0.1
            )
    assert (out / "quality.json").is_file()
