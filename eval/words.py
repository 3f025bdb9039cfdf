"""The scored captions, token by token and word by word: what the reference LLM expects, and what surprises it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.display import Display
from prior.documents import Ragged, encode, tokenize_captions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_scores(records: Any, tokenizer: PreTrainedTokenizerFast, logprob: Ragged) -> pd.DataFrame:
    """Every scored token, the ends of the captions included, since PRIOR weighs these too.

    Parameters are those of `word_scores`.

    Returns
    -------
    DataFrame
        ``p_r`` (float32) and ``relevant`` (boolean; missing where unknown), as training sees them.
    """
    relevant = tokenize_captions(records, tokenizer, image=False).relevant
    p_r = np.exp(logprob.gather(range(len(records))))
    assert relevant is not None and len(relevant.values) == len(p_r)
    return pd.DataFrame({"p_r": p_r, "relevant": pd.array(relevant.values, "Float32").astype("boolean")})


def word_scores(records: Any, tokenizer: PreTrainedTokenizerFast, logprob: Ragged) -> pd.DataFrame:
    """Every word of some captions, words being separated by white space.

    Parameters
    ----------
    records
        The first captions of the corpus: columns ``id``, ``caption`` and ``relevant``.
    logprob
        log p_r beside the tokens of the same corpus and tokenizer.

    Returns
    -------
    DataFrame
        ``word`` (lower case, without punctuation), ``p_r`` (product over the word's tokens), ``weight`` (mean over its
        tokens of 1 − p_r, PRIOR's w at α = 1), ``relevant`` (None where unknown).
    """
    columns = [name for name in ("caption", "relevant") if name in records.column_names]
    table = records.select_columns(columns)[:]
    spans = table.get("relevant") or [None] * len(records)
    offsets = encode(tokenizer, table["caption"])["offset_mapping"]
    rows = []
    for index, caption in enumerate(table["caption"]):
        words = [match.span() for match in re.finditer(r"\S+", caption)]
        ends = np.array([end for _, end in offsets[index]])
        # A token belongs to the word that its last character lies in; a leading space is the token's own.
        owner = np.searchsorted([end for _, end in words], ends)
        log_p = logprob[index][: len(ends)].astype(np.float64)
        for place, (start, end) in enumerate(words):
            own = log_p[owner == place]
            if not len(own):
                continue
            known = spans[index] is not None
            rows.append(
                {
                    "word": caption[start:end].strip(".,;:!?'\"()|-").lower(),
                    "p_r": float(np.exp(own.sum())),
                    "weight": float(-np.expm1(own).mean()),
                    "relevant": any(start < right and left < end for left, right in spans[index]) if known else None,
                }
            )
    return pd.DataFrame(rows, columns=["word", "p_r", "weight", "relevant"])


def extremes(words: pd.DataFrame, count: int = 25, at_least: int = 20) -> pd.DataFrame:
    """The words with the highest and the lowest mean weight among those that occur `at_least` times.

    Returns
    -------
    DataFrame
        ``end`` (highest or lowest), ``word``, ``weight`` (mean), ``p_r`` (mean), ``occurrences``.
    """
    named = words[words.word != ""]
    means = named.groupby("word").agg(weight=("weight", "mean"), p_r=("p_r", "mean"), occurrences=("word", "size"))
    ranked = means[means.occurrences >= at_least].reset_index().sort_values(["weight", "word"], ascending=[False, True])
    count = min(count, len(ranked) // 2)
    parts = {"highest": ranked.head(count), "lowest": ranked.tail(count).iloc[::-1]}
    return pd.concat([part.assign(end=end) for end, part in parts.items()], ignore_index=True)[
        ["end", "word", "weight", "p_r", "occurrences"]
    ]


def reference_quality(quality: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    """How well the reference LLM knows captions that it was trained on and others: the content of ``quality.json``."""
    return pd.DataFrame(
        [
            {"reference": reference, "captions": part} | values
            for reference, parts in quality.items()
            for part, values in parts.items()
        ]
    )


def show_quality(table: pd.DataFrame) -> list[Display]:
    cells = pd.DataFrame(
        {
            "reference LLM": table.reference.replace({"all": "of all captions"}),
            "captions": table.captions.str.replace("_", " "),
            "perplexity": [f"{value:.2f}" for value in table.perplexity],
            "mean p_r": [f"{value:.3f}" for value in table.mean_p_r],
            "tokens": [f"{int(value):,}" for value in table.tokens],
        }
    )
    note = "A reference that knows its training captions much better than others weighs what it has memorised."
    return [Display("The reference LLM", cells, note)]


def show(table: pd.DataFrame) -> list[Display]:
    """The extremes as one table, highest beside lowest."""
    sides = {}
    for end, title in (("highest", "PRIOR looks at"), ("lowest", "PRIOR looks away from")):
        part = table[table.end == end]
        sides[title] = list(part.word)
        sides[f"mean w ({end})"] = [f"{value:.3f}" for value in part.weight]
    note = "w = 1 − p_r, the mean over a word's tokens and all its occurrences; words that occur at least 20 times."
    return [Display("Words by importance score", pd.DataFrame(sides), note)]
