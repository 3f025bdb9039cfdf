"""The scored captions, token by token and word by word: what the reference LLM expects, and what surprises it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.gather.classes import CLASSES, END, pieces
from prior.config import Corpus
from prior.documents import Ragged, encode, tokenize_captions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = ".,;:!?'\"()|-"


def describe(records: Any, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> pd.DataFrame:
    """Every token of some captions, their ends included, with the word that it belongs to.

    Words are separated by white space. A token belongs to the word that its last character lies in; a leading space is
    the token's own.

    Parameters
    ----------
    records
        Columns ``id``, ``caption`` and ``relevant``.
    corpus
        Whose captions they are: of generated ones the classes of words are known.

    Returns
    -------
    DataFrame
        ``caption`` (from 0), ``place`` (of the word in its caption; −1 for the end and for white space at the end),
        ``word`` (lower case, without punctuation), ``word_class`` (of `eval.gather.classes.CLASSES`; missing where
        unknown), ``relevant`` (boolean; missing where unknown), as training sees it.
    """
    relevant = tokenize_captions(records, tokenizer, image=False).relevant
    assert relevant is not None
    table = records.select_columns(["id", "caption"])[:]
    offsets = encode(tokenizer, table["caption"])["offset_mapping"]
    places, words, kinds = [], [], []
    for name, caption, own in zip(table["id"], table["caption"], offsets, strict=True):
        spans = [match.span() for match in re.finditer(r"\S+", caption)]
        ends = np.array([end for _, end in own], dtype=np.int64)
        place = np.searchsorted([end for _, end in spans], ends)
        places.append(np.append(np.where(place < len(spans), place, -1), -1))
        spelt = [caption[start:end].strip(MARKS).lower() for start, end in spans] + [""]
        words += [spelt[at] for at in places[-1]]
        known = pieces(name, caption, corpus)
        kinds += [None] * (len(ends) + 1) if known is None else [*known.of(ends), END]
    return pd.DataFrame(
        {
            "caption": np.repeat(np.arange(len(relevant), dtype=np.int32), relevant.lengths),
            "place": np.concatenate(places),
            "word": words,
            "word_class": pd.Categorical(kinds, CLASSES),
            "relevant": pd.array(relevant.values, "Float32").astype("boolean"),
        }
    )


def first_tokens(tokens: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `describe` belong to words (bool), and which of those begin one (numbers, for ``reduceat``)."""
    inside = tokens.place.to_numpy() >= 0
    caption, place = tokens.caption.to_numpy()[inside], tokens.place.to_numpy()[inside]
    new = (np.diff(caption, prepend=-1) != 0) | (np.diff(place, prepend=-1) != 0)
    return inside, np.flatnonzero(new)


def of_words(tokens: pd.DataFrame) -> pd.DataFrame:
    """The words of `describe`: ``caption``, ``word``, ``word_class`` and ``relevant``.

    Relevant is a word with a relevant token; a word with a mark of punctuation has the class of what stands before it.
    """
    inside, starts = first_tokens(tokens)
    own = tokens[inside]
    words = own.iloc[starts][["caption", "word", "word_class"]].reset_index(drop=True)
    flags = own.relevant.astype("Float32").to_numpy(dtype=np.float32, na_value=np.nan)
    # The maximum of NaN is NaN: unknown.
    most = np.maximum.reduceat(flags, starts) if len(starts) else flags
    return words.assign(relevant=pd.array(most, "Float32").astype("boolean"))


def token_scores(tokens: pd.DataFrame, logprob: Ragged) -> pd.DataFrame:
    """Every scored token, the ends of the captions included, since PRIOR weighs these too.

    Parameters
    ----------
    tokens
        The first captions of the corpus, by `describe`.
    logprob
        log p_r beside the tokens of the same corpus and tokenizer.

    Returns
    -------
    DataFrame
        ``caption`` (int32), ``p_r`` (float32), ``relevant`` and ``word_class`` as in `describe`.
    """
    p_r = np.exp(_first(tokens, logprob))
    return tokens[["caption"]].assign(p_r=p_r, relevant=tokens.relevant, word_class=tokens.word_class)


def word_scores(tokens: pd.DataFrame, logprob: Ragged) -> pd.DataFrame:
    """Every word of some captions; parameters are those of `token_scores`.

    Returns
    -------
    DataFrame
        ``caption`` (int32), ``word`` (category), ``p_r`` (float32: product over the word's tokens), ``weight``
        (float32: mean over its tokens of 1 − p_r, PRIOR's w at α = 1), ``relevant``, ``word_class``.
    """
    inside, starts = first_tokens(tokens)
    log_p = _first(tokens, logprob)[inside].astype(np.float64)
    counts = np.diff(np.append(starts, len(log_p)))
    words = of_words(tokens)
    return words[["caption"]].assign(
        word=words.word.astype("category"),
        p_r=np.exp(np.add.reduceat(log_p, starts)).astype(np.float32),
        weight=(np.add.reduceat(-np.expm1(log_p), starts) / counts).astype(np.float32),
        relevant=words.relevant,
        word_class=words.word_class,
    )


def _first(tokens: pd.DataFrame, logprob: Ragged) -> np.ndarray:
    """The values beside the tokens of the first captions."""
    found = logprob.gather(range(int(tokens.caption.max()) + 1))
    assert len(found) == len(tokens)
    return found
