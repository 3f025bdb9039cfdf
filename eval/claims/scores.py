"""Evidence from importance scores: against relevance, and against what tokens learn from their picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from eval.claims.evidence import UNIT, Evidence, mean_of
from eval.claims.training import whole
from eval.display import name, number
from eval.outcomes.scores import Sample
from eval.statistics import sign_flip
from eval.study import Missing, Study

CAPTIONS, TRAININGS = "captions", "trainings"
THROUGHOUT = "the same held-out captions and one reference LLM throughout"


def share(study: Study) -> Evidence:
    """The share of words, in percent, that the picture decides."""
    words = _words(study)
    sample = Sample(words.caption, study.settings)
    found = sample.ratio(words.relevant.to_numpy(dtype=float), np.ones(len(words)))
    known = "word_class" in words and words.word_class.notna().any()
    why = "set by construction: the captions are generated to that share" if known else "a property of the captions"
    value, low, high = (100 * bound for bound in (found.estimate, found.low, found.high))
    return Evidence(value, low, high, float("nan"), sample.captions, CAPTIONS, sample.captions, fixed=why)


def ranking(study: Study) -> Evidence:
    """The chance that a word which the picture decides has a higher w than another; p by captions.

    The p is of the mean w of a caption's words of one kind minus that of the other kind, which must point the same way.
    """
    words = _words(study)
    sample = Sample(words.caption, study.settings)
    relevant, w = words.relevant.to_numpy(dtype=bool), words.weight.to_numpy(dtype=float)
    auc, precision = sample.ranking(w, relevant)
    means = pd.DataFrame({"caption": sample.caption, "relevant": relevant, "w": w})
    sides = means.groupby(["caption", "relevant"]).w.mean().unstack()
    if sides.shape[1] < 2:
        raise Missing("all words are of one kind")
    gaps = (sides[True] - sides[False]).dropna()
    p = sign_flip(gaps, study.settings.seed)
    # A ranking can be right on the whole and wrong at its top, where the weight is.
    note = (
        f"of as many words with the largest w {number(100 * precision.estimate, 1)} % are image-related, by chance "
        f"{number(100 * float(relevant.mean()), 1)} %; one reference LLM"
    )
    if len(gaps) < sample.captions:
        note += f"; {sample.captions - len(gaps)} captions have words of one kind alone"
    agrees = bool((gaps.mean() > 0) == (auc.estimate > 0.5))
    if not agrees:
        note += "; within captions w points the other way"
    return Evidence(auc.estimate, auc.low, auc.high, p, len(gaps), CAPTIONS, len(gaps), note, agrees=agrees)


def tracking(study: Study) -> Evidence:
    """Spearman's correlation of w with the mutual information of token and picture in each NTP training."""
    return _correlation(study, "rho_w", "ntp")[0]


def gaining(study: Study) -> Evidence:
    """Spearman's correlation of a token's mutual information, told by another seed's NTP, with its gain under PRIOR."""
    found, rows = _correlation(study, "rho_gain", "prior", ("ntp", "prior"))
    if (rows.judge == rows.seed).any():
        raise Missing(
            "there is no other seed to tell the mutual information: one loss under NTP would stand on both sides"
        )
    return found


def _correlation(
    study: Study, column: str, objective: str, of: tuple[str, ...] = ("ntp",)
) -> tuple[Evidence, pd.DataFrame]:
    table = study.table("mutual")
    if objective not in set(study.compared.objective):
        raise Missing(f"{name(objective)} was not trained at every scale")
    where = {"unit": "token", "group": "all", "by": "all", "objective": objective}
    for key, value in where.items():
        table = table[table[key].astype(str) == value]
    rows = whole(table.astype({"arch": str, "objective": str}), study, "mutual.parquet")
    units = rows.set_index(UNIT)[column].astype(float).sort_index()
    if not len(units) or units.isna().any():
        raise Missing("a correlation is not defined: one of its sides does not vary, or was not measured")
    return mean_of(units, study, TRAININGS, THROUGHOUT, of), rows


def _words(study: Study) -> pd.DataFrame:
    words: Any = study.table("words")
    if "caption" not in words or words.relevant.isna().any():
        raise Missing("it is not known which words the picture decides")
    return words
