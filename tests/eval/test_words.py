"""Words and tokens by importance score: gathered from scored captions, held against relevance, shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from eval.gather.classes import CLASSES, END
from eval.gather.words import describe, of_words, token_scores, word_scores
from eval.outcomes import scores
from eval.outcomes.words import extremes
from eval.outcomes.words import show as show_words
from eval.outcomes.words import table as words_table
from eval.results import Paper
from eval.study import Missing, Study
from prior.backbones import train_tokenizer
from prior.config import FolderCorpus, ScenesCorpus, ScratchTokenizer, Statistics
from prior.corpus.captions import HUMAN_SHARE
from prior.corpus.scenes import pair
from prior.documents import tokenize_captions
from prior.errors import UserError
from prior.weighting import prior_weights
from tests.eval import synthetic

FOLDER = FolderCorpus(folder="photos")


def generated(count: int) -> Any:
    from datasets import Dataset

    rows = [pair("train", index, 0, 16) for index in range(count)]
    return Dataset.from_list([{name: row[name] for name in ("id", "caption", "relevant")} for row in rows])


def study(words: pd.DataFrame, tokens: pd.DataFrame, **more: Any) -> Study:
    metrics = synthetic.metrics()
    paper = Paper(pd.DataFrame(), pd.DataFrame())
    settings = Statistics(resamples=400)
    stored = {"words": words, "tokens": tokens}
    return Study("imagined", settings, metrics, synthetic.items(metrics), paper, stored=stored, **more)


@pytest.fixture(scope="module")
def speller() -> Any:
    """A tokenizer that knows the generated captions, as those of presets do."""
    return train_tokenizer(generated(300)["caption"], ScratchTokenizer(vocab_size=600))


def value(table: pd.DataFrame, unit: str, quantity: str, group: str, alpha: float | None = None) -> pd.Series:
    rows = table[(table.unit == unit) & (table.quantity == quantity) & (table.group == group)]
    (row,) = (rows if alpha is None else rows[rows.alpha == alpha]).itertuples()
    return row


def test_words_carry_the_probability_of_their_tokens(records: Any, tokenizer: Any) -> None:
    documents = tokenize_captions(records, tokenizer, image=False)
    logprob = -np.random.default_rng(0).exponential(1.0, len(documents.targets.values)).astype(np.float32)
    beside = documents.targets.beside(logprob)
    described = describe(records, tokenizer, FOLDER)
    tokens = token_scores(described, beside)
    assert tokens.p_r.tolist() == pytest.approx(np.exp(logprob).tolist())
    assert documents.relevant is not None
    assert tokens.relevant.tolist() == (documents.relevant.values == 1).tolist() and tokens.relevant.any()
    assert tokens.word_class.isna().all()
    assert tokens.groupby("caption").size().tolist() == documents.targets.lengths.tolist()
    unknown = describe(records.remove_columns("relevant"), tokenizer, FOLDER)
    assert unknown.relevant.isna().all() and of_words(unknown).relevant.isna().all()
    words = word_scores(described, beside)
    captions = [record["caption"] for record in records]
    assert list(words.word) == " ".join(captions).split()
    assert (words.relevant == words.word.isin(["red", "blue", "green"])).all()
    # Whatever the tokens of a word are, the captions' probabilities are the products of their words'.
    ends = documents.targets.offsets[1:] - 1
    owner = np.repeat(np.arange(len(captions)), [len(caption.split()) for caption in captions])
    assert words.caption.tolist() == owner.tolist()
    per_caption = np.add.reduceat(logprob.astype(float), documents.targets.offsets[:-1]) - logprob[ends]
    found = np.bincount(owner, weights=np.log(words.p_r.to_numpy(float)))
    np.testing.assert_allclose(found, per_caption, rtol=1e-5)
    # A one-token word's weight is 1 − p_r.
    whole = [len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1 for word in words.word]
    inner = np.array(whole) & (np.arange(len(words)) > 0)
    same = words[inner & ~np.concatenate([[True], owner[1:] != owner[:-1]])]
    assert len(same) > 20
    assert same.weight.tolist() == pytest.approx((1 - same.p_r).tolist(), abs=1e-6)
    ranked = extremes(words, count=3, at_least=2)
    means = words.groupby("word", observed=True).weight.mean()[words.word.value_counts() >= 2]
    assert ranked.word.iloc[0] == means.idxmax() and ranked[ranked.end == "lowest"].word.iloc[0] == means.idxmin()


def test_generated_words_have_their_classes_again(speller: Any) -> None:
    records = generated(40)
    described = describe(records, speller, ScenesCorpus())
    assert set(described.word_class) == set(CLASSES)
    # What the picture decides was marked, character by character, when the captions were made.
    assert ((described.word_class == "visual") == described.relevant).all()
    assert (described.word_class == END).sum() == 40
    words = of_words(described)
    assert ((words.word_class == "visual") == words.relevant).all()
    assert words.word[words.word_class == "number"].str.contains(r"\d").mean() > 0.7
    changed = records.map(lambda row: {"caption": row["caption"].replace("a", "e")})
    with pytest.raises(UserError, match="train-0000.*make it again"):
        describe(changed, speller, ScenesCorpus())


def test_weights_are_those_of_training() -> None:
    rng = np.random.default_rng(3)
    caption = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    p_r = rng.beta(0.5, 0.5, len(caption)).astype(np.float32)
    p_r[caption == 7] = 1
    for alpha in scores.ALPHAS:
        logprob = torch.log(torch.from_numpy(p_r.clip(1e-30)))
        expected = prior_weights(logprob, torch.from_numpy(caption), alpha).numpy()
        np.testing.assert_allclose(scores.weights(p_r, caption, alpha), expected, atol=2e-5)


def clustered(captions: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words whose w depend on their caption, so that they are not independent."""
    rng = np.random.default_rng(seed)
    caption = np.repeat(np.arange(captions), rng.integers(5, 20, captions))
    relevant = rng.random(len(caption)) < 0.15 + 0.3 * rng.random(captions)[caption]
    score = rng.normal(size=len(caption)) + rng.normal(size=captions)[caption] + 0.6 * relevant
    return caption, stats.norm.cdf(score), relevant


def test_ranking_agrees_with_plain_counts_and_with_the_clustered_variance_of_obuchowski() -> None:
    caption, w, relevant = clustered(150, seed=1)
    sample = scores.Sample(pd.Series(caption), Statistics(resamples=4000))
    auc, precision = sample.ranking(w, relevant)
    hits, others = w[relevant], w[~relevant]
    wins = (hits[:, None] > others) + 0.5 * (hits[:, None] == others)
    assert auc.estimate == pytest.approx(wins.mean())
    top = np.sort(w)[-relevant.sum()]
    assert precision.estimate == pytest.approx(relevant[w >= top].mean())
    assert precision.low < precision.estimate < precision.high
    # Obuchowski (1997): DeLong's variance with the words of a caption taken together.
    m, n, total = len(hits), len(others), 150
    x = np.bincount(caption[relevant], wins.mean(1) - auc.estimate, total)
    y = np.bincount(caption[~relevant], wins.mean(0) - auc.estimate, total)
    with_hits, with_others = (len(np.unique(caption[mask])) for mask in (relevant, ~relevant))
    s10 = with_hits / ((with_hits - 1) * m) * (x**2).sum()
    s01 = with_others / ((with_others - 1) * n) * (y**2).sum()
    variance = s10 / m + s01 / n + 2 * total / (total - 1) * (x * y).sum() / (m * n)
    assert (auc.high - auc.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.08)


def test_shares_of_weight_add_up_and_the_blind_spot_is_found(speller: Any) -> None:
    described = describe(generated(60), speller, ScenesCorpus())
    rng = np.random.default_rng(5)
    # A reference that knows function words and nothing else.
    known = described.word_class.isin(["function", END]).to_numpy()
    logprob = np.log(np.where(known, 0.95, 0.02) + 0.01 * rng.random(len(known))).astype(np.float32)
    beside = tokenize_captions(generated(60), speller, image=False).targets.beside(logprob)
    words, tokens = word_scores(described, beside), token_scores(described, beside)
    table = scores.table(study(words, tokens, alphas={"ntp": 0.0, "prior-a3": 3.0}))
    kinds = [f"class:{kind}" for kind in CLASSES]
    for alpha in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0):
        for quantity, of in (("weight", 1.0), ("blind", value(table, "token", "blind", "all", alpha).value)):
            parts = [value(table, "token", quantity, kind, alpha).value for kind in kinds]
            assert sum(parts) == pytest.approx(of)
        assert value(table, "token", "blind", "class:visual", alpha).value == 0
        names = value(table, "token", "blind", "class:name", alpha)
        assert names.value == pytest.approx(value(table, "token", "weight", "class:name", alpha).value)
        assert value(table, "token", "blind", "class:function", alpha).value == 0
    share = value(table, "token", "share", "class:name")
    assert value(table, "token", "weight", "class:name", 0.0).value == pytest.approx(share.value)
    # At a large α the tokens of a caption that are not known share its weight, which is the number of its tokens.
    rows = tokens.assign(unknown=~known, name=tokens.word_class == "name")
    captions = rows.groupby("caption").agg(k=("unknown", "size"), unknown=("unknown", "sum"), names=("name", "sum"))
    expected = (captions.k * captions.names / captions.unknown).sum() / captions.k.sum()
    assert value(table, "token", "weight", "class:name", 4.0).value == pytest.approx(expected, rel=0.02)
    assert value(table, "word", "share", "relevant").paper == HUMAN_SHARE
    assert value(table, "word", "w", "class:function").value == pytest.approx(0.045, abs=0.01)
    shown = scores.show(table)
    assert [part.title for part in shown][1:] == ["Classes of words", "Where the weight falls"]
    assert shown[0].cells["AUC of w"].iloc[0].startswith(f"{value(table, 'word', 'auc', 'relevant').value:.3f}")


def test_where_relevance_is_unknown_there_are_distributions_alone(records: Any, tokenizer: Any) -> None:
    plain = records.remove_columns("relevant")
    described = describe(plain, tokenizer, FOLDER)
    targets = tokenize_captions(plain, tokenizer, image=False).targets
    beside = targets.beside(-np.random.default_rng(0).exponential(1, len(targets.values)).astype(np.float32))
    words = word_scores(described, beside)
    imagined = study(words, token_scores(described, beside))
    table = scores.table(imagined)
    assert set(table.group) == {"all"} and "auc" not in set(table.quantity)
    (shown,) = scores.show(table)
    assert "not known" in shown.note and "AUC" not in shown.cells.columns
    assert len(scores.draw(table, imagined).axes) == 2
    with pytest.raises(Missing, match="gather them again"):
        scores.table(study(words.drop(columns="caption"), words))


def test_extreme_words_stand_beside_the_quality_of_the_reference(speller: Any) -> None:
    described = describe(generated(60), speller, ScenesCorpus())
    targets = tokenize_captions(generated(60), speller, image=False).targets
    beside = targets.beside(-np.random.default_rng(0).exponential(1, len(targets.values)).astype(np.float32))
    words = word_scores(described, beside)
    quality = {"all": {"held_out": {"perplexity": 5.25, "mean_p_r": 0.4, "tokens": 1234}}}
    table = words_table(study(words, words, quality=quality))
    first, second = show_words(table)
    assert len(first.cells) > 3 and set(first.cells["class (highest)"]) <= set(CLASSES)
    assert second.cells.iloc[0].tolist() == ["of all captions", "held out", "5.25", "0.400", "1,234"]
    assert len(show_words(words_table(study(words, words)))) == 1
