"""Scores: stored and read back, refused where they do not fit, and cross-fitted without a leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prior import config
from prior.errors import UserError
from prior.models.attention import pack
from prior.packing import Packer, tokenize_captions
from prior.reference import folds, score, train_reference
from prior.scores import align, read_scores, token_logprobs, write_scores

PRINTS = {"corpus": "c", "tokenizer": "t"}


def test_scores_survive_the_file_and_strangers_are_refused(records: Any, tokenizer: Any, tmp_path: Path) -> None:
    documents = tokenize_captions(records, tokenizer, image=False)
    logprob = -np.random.default_rng(0).exponential(1.0, len(documents.targets.values)).astype(np.float32)
    path = tmp_path / "scores.arrow"
    write_scores(path, documents, logprob, PRINTS)
    np.testing.assert_array_equal(align(documents, path, PRINTS), logprob)
    ids, tokens, _, _ = read_scores(path)
    assert ids == documents.ids and tokens[3].tolist() == documents.targets[3].tolist()
    with pytest.raises(UserError, match="another tokenizer"):
        align(documents, path, {**PRINTS, "tokenizer": "u"})
    with pytest.raises(UserError, match="another corpus"):
        align(documents, path, {**PRINTS, "corpus": "d"})
    with pytest.raises(UserError, match="in another order"):
        align(replace(documents, ids=documents.ids[::-1]), path, PRINTS)
    values = documents.targets.values.copy()
    values[4] += 1
    with pytest.raises(UserError, match="its tokens differ"):
        align(replace(documents, targets=replace(documents.targets, values=values)), path, PRINTS)


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
    fold = np.repeat(folds(len(documents), cross_fit, settings.seed), documents.targets.lengths)
    for k in range(max(cross_fit, 1)):
        model = AutoModelForCausalLM.from_pretrained(out / f"fold{k}" if cross_fit else out).eval()
        pack(model)
        alone = token_logprobs(model, Packer(documents, tokenizer.bos_token_id))
        np.testing.assert_allclose(scores[fold == k], alone[fold == k], atol=1e-5)
        if cross_fit:
            # Trained for many epochs, a fold's reference knows its own captions by heart and not those left out.
            assert (
                quality[f"fold{k}"]["trained_on"]["mean_p_r"] > quality[f"fold{k}"]["left_out_fold"]["mean_p_r"] + 0.1
            )
    assert (out / "quality.json").is_file()
