"""Words from tokens: products, spans and rankings, against a plain computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eval.words import extremes, token_scores, word_scores
from prior.documents import tokenize_captions


def test_words_carry_the_probability_of_their_tokens(records: Any, tokenizer: Any) -> None:
    documents = tokenize_captions(records, tokenizer, image=False)
    logprob = -np.random.default_rng(0).exponential(1.0, len(documents.targets.values)).astype(np.float32)
    scores = documents.targets.beside(logprob)
    tokens = token_scores(records, tokenizer, scores)
    assert tokens.p_r.tolist() == pytest.approx(np.exp(logprob).tolist())
    assert tokens.relevant.tolist() == (documents.relevant.values == 1).tolist() and tokens.relevant.any()
    unknown = token_scores(records.remove_columns("relevant"), tokenizer, scores)
    assert unknown.relevant.isna().all()
    words = word_scores(records, tokenizer, scores)
    captions = [record["caption"] for record in records]
    assert list(words.word) == " ".join(captions).split()
    assert (words.relevant == words.word.isin(["red", "blue", "green"])).all()
    # Whatever the tokens of a word are, the captions' probabilities are the products of their words'.
    ends = documents.targets.offsets[1:] - 1
    owner = np.repeat(np.arange(len(captions)), [len(caption.split()) for caption in captions])
    per_caption = np.add.reduceat(logprob.astype(float), documents.targets.offsets[:-1]) - logprob[ends]
    found = np.bincount(owner, weights=np.log(words.p_r.to_numpy()))
    np.testing.assert_allclose(found, per_caption, rtol=1e-5)
    # A one-token word's weight is 1 − p_r.
    whole = [len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1 for word in words.word]
    inner = np.array(whole) & (np.arange(len(words)) > 0)
    same = words[inner & ~np.concatenate([[True], owner[1:] != owner[:-1]])]
    assert len(same) > 20
    assert same.weight.tolist() == pytest.approx((1 - same.p_r).tolist(), abs=1e-6)
    ranked = extremes(words, count=3, at_least=2)
    means = words.groupby("word").weight.mean()[words.word.value_counts() >= 2]
    assert ranked.word.iloc[0] == means.idxmax() and ranked[ranked.end == "lowest"].word.iloc[0] == means.idxmin()
