"""The words that PRIOR looks at and looks away from, and how well the reference LLM knows its captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from eval.display import Display
from eval.study import Study

COUNT, AT_LEAST = 25, 20
COLUMNS = ["part", "end", "word", "word_class", "weight", "p_r", "occurrences"]
QUALITY = ["reference", "captions", "perplexity", "mean_p_r", "tokens"]


def table(study: Study) -> pd.DataFrame:
    """Words by their mean weight, and the reference LLM's quality where it is known.

    Columns: part (``word`` or ``reference``); of words end (highest or lowest), word, word_class (the commonest;
    missing where unknown), weight (mean w at α = 1), p_r (mean), occurrences; of reference LLMs reference, captions,
    perplexity, mean_p_r, tokens.
    """
    words = extremes(study.table("words")).assign(part="word")
    if study.quality is None:
        return words.reindex(columns=[*COLUMNS, *QUALITY])
    known = reference_quality(study.quality).assign(part="reference")
    return pd.concat([words, known], ignore_index=True)[[*COLUMNS, *QUALITY]]


def extremes(words: pd.DataFrame, count: int = COUNT, at_least: int = AT_LEAST) -> pd.DataFrame:
    """The words with the highest and the lowest mean weight among those that occur `at_least` times.

    Returns
    -------
    DataFrame
        ``end`` (highest or lowest), ``word``, ``word_class``, ``weight`` (mean), ``p_r`` (mean), ``occurrences``.
    """
    named = words[words.word != ""]
    by = named.groupby("word", observed=True)
    means = by.agg(weight=("weight", "mean"), p_r=("p_r", "mean"), occurrences=("weight", "size"))
    means["word_class"] = pd.Series(_commonest(named), dtype=object)
    frequent = means[means.occurrences >= at_least].rename_axis("word").reset_index().astype({"word": str})
    ranked = frequent.sort_values(["weight", "word"], ascending=[False, True])
    count = min(count, len(ranked) // 2)
    parts = {"highest": ranked.head(count), "lowest": ranked.tail(count).iloc[::-1]}
    return pd.concat([part.assign(end=end) for end, part in parts.items()], ignore_index=True)[
        ["end", "word", "word_class", "weight", "p_r", "occurrences"]
    ]


def _commonest(words: pd.DataFrame) -> dict[str, str]:
    """The class that each word has most often; nothing where classes are not known."""
    if "word_class" not in words:
        return {}
    counts = words.groupby(["word", "word_class"], observed=True).size()
    return {word: kind for word, kind in counts.sort_values(kind="stable").index}


def reference_quality(quality: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """How well the reference LLM knows captions that it was trained on and others: the content of ``quality.json``."""
    records: list[dict[str, Any]] = [
        {"reference": reference, "captions": captions, **values}
        for reference, parts in quality.items()
        for captions, values in parts.items()
    ]
    return pd.DataFrame(records)


def show(table: pd.DataFrame) -> list[Display]:
    """The extremes as one table, highest beside lowest, and the reference LLM's quality."""
    sides: dict[str, list[str]] = {}
    for end, title in (("highest", "PRIOR looks at"), ("lowest", "PRIOR looks away from")):
        part = table[table.end == end]
        sides[title] = list(part.word)
        if part.word_class.notna().any():
            sides[f"class ({end})"] = list(part.word_class.fillna(""))
        sides[f"mean w ({end})"] = [f"{value:.3f}" for value in part.weight]
    note = (
        "w = 1 − p_r, the mean over a word's tokens and all its occurrences; words that occur at least "
        f"{AT_LEAST} times among the captions that were looked at."
    )
    shown = [Display("Words by importance score", pd.DataFrame(sides), note)]
    quality = table[table.part == "reference"]
    return [*shown, _quality(quality)] if len(quality) else shown


def _quality(table: pd.DataFrame) -> Display:
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
    return Display("The reference LLM", cells, note)
