"""The paper's claims, each as a test with an interval and a verdict by one rule; ``docs/claims.md`` states the rule.

A claim is an entry of `CLAIMS`: what the paper says, the statistic that tests it, and the function of a study that
gives the evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from eval.claims import benchmarks, scores, training
from eval.claims.evidence import Evidence
from eval.claims.rule import Claim, judge
from eval.display import Display, html, markdown, p_value, spread
from eval.results import Paper, select
from eval.study import Missing, Study
from prior.files import whole, write_text

ABSTRACT, NOTES, PICTURE, OPEN = "abstract", "summary of the paper", "authors' picture", "open question of the paper"


def told(claim: str, arch: str) -> Callable[[Paper], float]:
    """A figure of ``results/reported/claims.csv``."""
    return lambda paper: float(select(paper.claims, claim=claim, arch=arch).value.iloc[0])


def best(paper: Paper) -> float:
    """By how many percent the best checkpoint of the paper's own trajectory is above NTP's best."""
    return float(100 * (paper.trajectory.prior.max() / paper.trajectory.ntp.max() - 1))


def unasked(why: str) -> Callable[[Study], Evidence]:
    def measure(study: Study) -> Evidence:
        raise Missing(why)

    return measure


CLAIMS = [
    Claim(
        "hlvlm",
        "PRIOR improves the benchmarks of an LVLM with a visual encoder (H-LVLM).",
        "raw average of the paper's benchmarks, PRIOR's mean over NTP's minus one, %",
        partial(benchmarks.improvement, arch="hlvlm"),
        told("relative_improvement", "hlvlm"),
        ABSTRACT,
        signed=True,
    ),
    Claim(
        "ulvlm",
        "PRIOR improves the benchmarks of an LVLM without a visual encoder (U-LVLM).",
        "raw average of the paper's benchmarks, PRIOR's mean over NTP's minus one, %",
        partial(benchmarks.improvement, arch="ulvlm"),
        told("relative_improvement", "ulvlm"),
        ABSTRACT,
        signed=True,
    ),
    Claim(
        "corrected",
        "PRIOR improves benchmarks over NTP in both settings.",
        "corrected average (0 guessing, 1 perfect), PRIOR − NTP, in the setting where that is worse",
        benchmarks.corrected,
        "higher",
        ABSTRACT,
    ),
    Claim(
        "best",
        "PRIOR's best checkpoint is better than NTP's best.",
        "raw average on the way, best checkpoint of PRIOR over NTP's minus one, %",
        benchmarks.best_checkpoint,
        best,
        PICTURE,
        signed=True,
    ),
    Claim(
        "error exponent",
        "PRIOR's scaling coefficients are significantly higher: benchmarks.",
        "exponent b of benchmark error A·x^−b, PRIOR − NTP",
        partial(training.exponent, quantity="error"),
        "higher",
        ABSTRACT,
    ),
    Claim(
        "loss exponent",
        "PRIOR's scaling coefficients are significantly higher: loss.",
        "exponent b of held-out loss A·x^−b, PRIOR − NTP",
        partial(training.exponent, quantity="loss"),
        "higher",
        ABSTRACT,
    ),
    Claim(
        "data",
        "PRIOR makes more of the same data.",
        "how many times its data NTP needs for PRIOR's benchmark error at the largest scale",
        training.data_efficiency,
        "more than once",
        ABSTRACT,
        null=1.0,
    ),
    Claim(
        "predictable",
        "PRIOR scales more predictably.",
        "by how many % the power law through the other scales misses the largest one's benchmark error, PRIOR − NTP",
        training.predictability,
        "less",
        NOTES,
        above=False,
    ),
    Claim(
        "jitter",
        "PRIOR's training is more stable: loss.",
        "log of the variance of unweighted training loss about its trend, PRIOR − NTP",
        training.jitter,
        "lower",
        NOTES,
        above=False,
    ),
    Claim(
        "spikes",
        "PRIOR's training is more stable: gradients.",
        "spikes of the gradient norm in 1,000 steps, PRIOR − NTP",
        training.spikes,
        "fewer",
        NOTES,
        above=False,
    ),
    Claim(
        "neighbours",
        "PRIOR's training is more stable: benchmarks from checkpoint to checkpoint.",
        "root mean square of a score off the line between its neighbours' on the way, PRIOR − NTP",
        benchmarks.between_checkpoints,
        "lower",
        NOTES,
        above=False,
    ),
    Claim(
        "relevant",
        "PRIOR's loss on image-related tokens is lower.",
        "held-out loss on relevant tokens, nats per token, PRIOR − NTP",
        partial(training.heldout, metric="loss_relevant"),
        "lower",
        NOTES,
        above=False,
    ),
    Claim(
        "other",
        "PRIOR's loss on image-unrelated tokens is lower.",
        "held-out loss on other tokens, nats per token, PRIOR − NTP",
        partial(training.heldout, metric="loss_other"),
        "lower",
        NOTES,
        above=False,
    ),
    Claim(
        "alpha one",
        "α = 1, the default, is better than no weighting (α = 0).",
        "corrected average at the scale of the ablation, α = 1 minus NTP",
        partial(benchmarks.against_alpha, alpha=1, base=0),
        "higher",
        NOTES,
    ),
    Claim(
        "alpha two",
        "α plateaus early: α = 2 is like α = 1.",
        "half the gain of α = 1 over NTP, minus the distance of α = 2 from α = 1, corrected average",
        benchmarks.plateau,
        "plateau",
        NOTES,
    ),
    Claim(
        "alpha four",
        "α larger than 2 degrades.",
        "corrected average at the scale of the ablation, α = 4 minus α = 1",
        partial(benchmarks.against_alpha, alpha=4, base=1),
        "lower",
        NOTES,
        above=False,
    ),
    Claim(
        "share",
        "Only a small share of caption words relates directly to the image.",
        "share of words that the picture decides, %",
        scores.share,
        told("human_image_related_words", "both"),
        NOTES,
    ),
    Claim(
        "ranking",
        "Importance scores agree with which words relate to the image.",
        "AUC of w for words that the picture decides; p of a caption's mean w of these minus that of the others",
        scores.ranking,
        "correlated",
        NOTES,
        null=0.5,
    ),
    Claim(
        "tracking",
        "Tokens that are unlikely without the image carry information about it.",
        "Spearman's correlation of w with log p(t|v) − log p(t) in NTP's trainings",
        scores.tracking,
        "above 0",
        NOTES,
    ),
    Claim(
        "gaining",
        "Tokens with a large log p(t|v) − log p(t) gain most.",
        "Spearman's correlation of another seed's log p(t|v) − log p(t) under NTP with the loss that PRIOR saves",
        scores.gaining,
        "above 0",
        NOTES,
    ),
    Claim(
        "hallucination",
        "NTP increases the risk of hallucination; PRIOR addresses it.",
        "made-up objects in captions of equal length (CHAIR_i), percentage points, PRIOR − NTP",
        benchmarks.hallucination,
        "less; asked for, not measured",
        f"{ABSTRACT}; {OPEN}",
        above=False,
    ),
    Claim(
        "tokenizers",
        "Scores can be transferred across tokenizers.",
        "none",
        unasked("reference LLM and LVLM share one tokenizer in a preset"),
        "open",
        OPEN,
    ),
    Claim(
        "reference",
        "Size and quality of the reference LLM decide what the scores are worth.",
        "none",
        unasked("a preset trains its runs with the scores of one reference LLM"),
        "open",
        OPEN,
    ),
    Claim(
        "bias",
        "Weighting amplifies demographic bias.",
        "none",
        unasked("generated captions name no people, and no other corpus here says whom its pictures show"),
        "open",
        OPEN,
    ),
]


def table(study: Study) -> pd.DataFrame:
    """A row for each claim: with the columns `eval.claims.rule.COLUMNS`."""
    return judge(CLAIMS, study)


def show(table: pd.DataFrame) -> list[Display]:
    """The claims as people see them."""
    rows = [
        {
            "claim": row.claim,
            "statistic": row.statistic,
            "paper": row.paper,
            "here": _spread(row.value, row.low, row.high),
            "n": "" if pd.isna(row.n) else str(row.n),
            "p": p_value(row.p),
            "p (Holm)": p_value(row.p_holm),
            "verdict": row.verdict,
            "why": row.why,
        }
        for row in table.itertuples()
    ]
    note = (
        "Shown: the interval lies on the claimed side of no difference and p, adjusted for the number of tests (Holm), "
        "is small enough; contradicted: the same on the other side; not shown: neither. Intervals are over seeds, "
        "in the two rows on words over captions; p by flipping the signs of paired differences. The rule was written "
        "down before the numbers, when an older study without ablations was known, and tightened once when they came; "
        "it is the same for every claim (docs/claims.md)."
    )
    return [Display("The paper's claims", pd.DataFrame(rows), note)]


def write_claims(study: Study, folder: Path) -> pd.DataFrame:
    """Write ``claims.csv``, ``claims.md`` and ``claims.html`` into `folder`."""
    found = table(study)
    shown = show(found)
    with whole(folder / "claims.csv") as temporary:
        found.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")
    write_text(folder / "claims.md", markdown(shown))
    write_text(folder / "claims.html", html(shown))
    return found


def _spread(value: float, low: float, high: float) -> str:
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return spread(value, low, high, digits, bounds=True)
