"""Importance scores against relevance: what PRIOR weighs up, and what the picture decides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats

from eval import style
from eval.display import Display, name, number, spread
from eval.gather.classes import CLASSES, groups
from eval.statistics import Interval
from eval.study import Missing, Study
from prior.config import Statistics
from prior.corpus.captions import HUMAN_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# NTP and the ablation that the paper names; weights need no training to be known.
ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0)
# Unpredictable is a token that the reference LLM would sooner bet against.
UNPREDICTABLE = 0.5
QUANTILES = (0.1, 0.5, 0.9)
# Ranks are resampled in so many bins: that moves no bound by more than a bin holds.
BINS = 1024
COLUMNS = ["unit", "group", "quantity", "alpha", "value", "low", "high", "n", "captions", "paper"]
GROUPS = {"all": "all", "relevant": "image-related", "other": "other", "class:end": "(end of caption)"}


def table(study: Study) -> pd.DataFrame:
    """Importance scores w = 1 − p_r of words (mean over a word's tokens) and of tokens, by relevance and by class.

    Columns `COLUMNS`: unit (word or token), group (all, relevant, other, ``class:…``), quantity, alpha (of shares of
    weight; NaN elsewhere), value, low, high (percentile bootstrap over captions), n (of the unit in the group),
    captions, paper (what its annotators found; else NaN). Quantities:

    ``share``
        of all words or tokens, in the group.
    ``w``, ``w 0.1``, ``w 0.5``, ``w 0.9``
        mean and quantiles.
    ``auc``
        probability that a relevant one has a higher w than another.
    ``precision``
        share of relevant ones among as many with the highest w as there are relevant ones.
    ``weight``
        share of PRIOR's weight (k·w^α/Σw^α within a caption) that falls on the group.
    ``blind``
        share of it that falls on those of the group with p_r < `UNPREDICTABLE` that the picture does not decide.
    """
    alphas = sorted({*ALPHAS, *study.alphas.values()})
    words, tokens = (_checked(study.table(each), each) for each in ("words", "tokens"))
    records: list[dict[str, object]] = []
    for unit, rows, w in (("word", words, words.weight), ("token", tokens, 1 - tokens.p_r)):
        sample, values = Sample(rows.caption, study.settings), w.to_numpy(dtype=np.float64)
        parts = _of_w(rows, values, marked=unit == "word")
        if unit == "token":
            parts += _of_weight(rows, sample.caption, alphas)
        intervals = sample.ratios([(part.above, part.below) for part in parts])
        key = {"unit": unit, "captions": sample.captions}
        records += [key | part.key | _row(interval) for part, interval in zip(parts, intervals, strict=True)]
        members = groups(rows)
        for group, mask in members.items():
            same = key | {"group": group, "n": int(mask.sum())}
            at = np.quantile(values[mask], QUANTILES) if mask.any() else np.full(len(QUANTILES), np.nan)
            records += [same | {"quantity": f"w {q:g}", "value": value} for q, value in zip(QUANTILES, at, strict=True)]
        if "relevant" in members:
            same = key | {"group": "relevant", "n": int(members["relevant"].sum())}
            both = sample.ranking(values, members["relevant"])
            pairs = zip(("auc", "precision"), both, strict=True)
            records += [same | {"quantity": quantity} | _row(interval) for quantity, interval in pairs]
    return pd.DataFrame(records, columns=COLUMNS)


class Part(NamedTuple):
    """A ratio to be given with its interval: what it is, and its two sides for every word or token."""

    key: dict[str, object]
    above: np.ndarray
    below: np.ndarray


def _of_w(rows: pd.DataFrame, w: np.ndarray, marked: bool) -> list[Part]:
    """The share of each group, and its mean w; `marked` is what the paper's annotators looked at: words."""
    found, ones = [], np.ones(len(rows))
    for group, mask in groups(rows).items():
        key: dict[str, object] = {"group": group, "n": int(mask.sum())}
        share = key | {"quantity": "share"} | ({"paper": HUMAN_SHARE} if marked and group == "relevant" else {})
        found += [Part(share, ones * mask, ones), Part(key | {"quantity": "w"}, w * mask, ones * mask)]
    return found


def _of_weight(tokens: pd.DataFrame, caption: np.ndarray, alphas: Sequence[float]) -> list[Part]:
    """The share of PRIOR's weight on each group, and on that part of it which is its blind spot."""
    found, members = [], groups(tokens)
    p_r = tokens.p_r.to_numpy()
    undecided = members.get("other", np.zeros(len(tokens), dtype=bool)) & (p_r < UNPREDICTABLE)
    for alpha in alphas:
        weight = weights(p_r, caption, alpha)
        for group, mask in members.items():
            key: dict[str, object] = {"group": group, "alpha": alpha}
            found.append(Part(key | {"quantity": "weight", "n": int(mask.sum())}, weight * mask, weight))
            if "other" in members and group not in ("relevant", "other"):
                blind = mask & undecided
                found.append(Part(key | {"quantity": "blind", "n": int(blind.sum())}, weight * blind, weight))
    return found


def weights(p_r: np.ndarray, caption: np.ndarray, alpha: float) -> np.ndarray:
    """PRIOR's weights k·w^α/Σw^α within each caption, as `prior.weighting.prior_weights` gives them in training.

    `caption` counts from 0. A caption whose w are all zero gets ones.
    """
    w = (1 - p_r.astype(np.float64)).clip(0, 1) ** alpha
    total, size = np.bincount(caption, w)[caption], np.bincount(caption)[caption]
    return np.divide(size * w, total, out=np.ones_like(w), where=total > 0)


class Sample:
    """Captions drawn with replacement: words of one caption are not independent of one another.

    Attributes
    ----------
    caption
        Which caption each word or token belongs to, counted from 0.
    draws
        (1 + resamples, captions): how often each caption is drawn; first the captions as they are.
    """

    def __init__(self, caption: pd.Series, settings: Statistics) -> None:
        self.caption, names = pd.factorize(caption)
        self.captions, self.confidence = len(names), settings.confidence
        self.draws = _draws(self.captions, settings.resamples, settings.seed)

    def ratios(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Interval]:
        """Σ above / Σ below of each pair."""
        sides = [[np.bincount(self.caption, pair[side], self.captions) for pair in pairs] for side in (0, 1)]
        above, below = (self.draws @ np.stack(sums, axis=1) for sums in sides)
        with np.errstate(invalid="ignore", divide="ignore"):
            return [self._interval(values) for values in (above / below).T]

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Interval:
        """Σ above / Σ below."""
        return self.ratios([(above, below)])[0]

    def ranking(self, w: np.ndarray, relevant: np.ndarray) -> tuple[Interval, Interval]:
        """AUC of `w` for `relevant`, and precision at the true share."""
        ranks = stats.rankdata(w)
        bins = np.minimum((ranks - 0.5) * BINS / len(w), BINS - 1).astype(np.int64)
        shape = (self.captions, BINS)
        hits, others = (
            sparse.csr_matrix((mask.astype(np.float64), (self.caption, bins)), shape=shape)
            for mask in (relevant, ~relevant)
        )
        # Highest w first.
        hit, other = ((part.T @ self.draws.T).T[:, ::-1] for part in (hits, others))
        total, below = hit.sum(1), other.sum(1)
        beaten = below[:, None] - np.cumsum(other, 1) + other / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            auc = (hit * beaten).sum(1) / (total * below)
            found, taken = np.cumsum(hit, 1), np.cumsum(hit + other, 1)
            top = [np.interp(count, row, right) for count, row, right in zip(total, taken, found, strict=True)]
            precision = np.array(top) / total
        m = int(relevant.sum())
        if 0 < m < len(w):
            # The estimates themselves without bins.
            auc[0] = (ranks[relevant].sum() - m * (m + 1) / 2) / (m * (len(w) - m))
            precision[0] = relevant[np.argsort(-w, kind="stable")[:m]].mean()
        return self._interval(auc), self._interval(precision)

    def _interval(self, values: np.ndarray) -> Interval:
        low = high = float("nan")
        if self.captions > 1 and np.isfinite(values[1:]).any():
            tail = (1 - self.confidence) / 2
            low, high = np.nanquantile(values[1:], [tail, 1 - tail])
        return Interval(float(values[0]), float(low), float(high), self.captions)


@lru_cache(maxsize=1)
def _draws(captions: int, resamples: int, seed: int) -> np.ndarray:
    """How often each caption is drawn in each resample; words and tokens are of the same captions."""
    drawn = np.random.default_rng(seed).multinomial(captions, np.full(captions, 1 / captions), size=resamples)
    return np.concatenate([np.ones((1, captions)), drawn])


def _row(interval: Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}


def _checked(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    lacking = {"caption", "word_class", "relevant"} - set(rows.columns)
    if lacking:
        raise Missing(f"the stored {what} do not say their {', '.join(sorted(lacking))}; gather them again")
    return rows


# How people see them.


def show(table: pd.DataFrame) -> list[Display]:
    """Scores against relevance, classes of words, and where the weight goes at each α."""
    known = "auc" in set(table.quantity)
    shown = [_ranking(table) if known else _spread_of_w(table)]
    if table.group.str.startswith("class:").any():
        shown.append(_classes(table))
    return [*shown, _weight(table)] if known else shown


def _ranking(table: pd.DataFrame) -> Display:
    rows = []
    for unit in ("word", "token"):
        cell = _Cells(table, unit)
        paper = table[(table.unit == unit) & table.paper.notna()].paper
        rows.append(
            {
                "": f"{unit}s",
                "image-related (%)": cell("share", "relevant", 100),
                "the paper's annotators (%)": number(100 * paper.iloc[0], 1) if len(paper) else "",
                "AUC of w": cell("auc", "relevant", digits=3),
                "precision at the true share (%)": cell("precision", "relevant", 100),
                "mean w, image-related": cell("w", "relevant", digits=3),
                "mean w, other": cell("w", "other", digits=3),
            }
        )
    note = (
        f"w = 1 − p_r, of a word the mean over its tokens; {_captions(table)}. AUC: how often an image-related word "
        "has the higher w of a pair (one half is chance). Precision: of as many words with the highest w as are "
        "image-related, how many are (chance is the true share). Tokens include the ends of captions."
    )
    return Display("Importance scores against relevance", pd.DataFrame(rows), note)


def _spread_of_w(table: pd.DataFrame) -> Display:
    rows = []
    for unit in ("word", "token"):
        cell = _Cells(table, unit)
        row = {"": f"{unit}s", "number": f"{cell.n('w', 'all'):,}", "mean w": cell("w", "all", digits=3)}
        rows.append(row | {f"{100 * q:g} % lie below": cell(f"w {q:g}", "all", digits=3) for q in QUANTILES})
    note = (
        f"w = 1 − p_r, of a word the mean over its tokens; {_captions(table)}. Which words these pictures decide is "
        "not known, so there is nothing to hold the scores against."
    )
    return Display("Importance scores", pd.DataFrame(rows), note)


def _classes(table: pd.DataFrame) -> Display:
    rows = []
    for kind in (f"class:{kind}" for kind in CLASSES):
        if kind not in set(table.group):
            continue
        words, tokens = _Cells(table, "word"), _Cells(table, "token")
        row = {
            "class": label(kind),
            "words (%)": words("share", kind, 100),
            "mean w of words": words("w", kind, digits=3),
            "tokens (%)": tokens("share", kind, 100),
            "mean w of tokens": tokens("w", kind, digits=3),
        }
        rows.append(
            row | {f"weight at α = {alpha:g} (%)": tokens("weight", kind, 100, 1, alpha) for alpha in _of_prior(table)}
        )
    note = (
        "Share of tokens is what NTP gives to a class; share of weight, normalised within captions, what PRIOR gives. "
        f"Visual words are those that the picture decides. Tokens and words of {_captions(table)}."
    )
    return Display("Classes of words", pd.DataFrame(rows), note)


def _weight(table: pd.DataFrame) -> Display:
    cell, rows = _Cells(table, "token"), []
    blind = table[(table.quantity == "blind") & (table.n > 0)]
    kinds = [kind for kind in (f"class:{kind}" for kind in CLASSES) if kind in set(blind.group)]
    for alpha in sorted(table.alpha.dropna().unique()):
        row = {
            "": weighting(alpha),
            "on image-related tokens (%)": cell("weight", "relevant", 100, 1, alpha),
            "blind spot (%)": cell("blind", "all", 100, 1, alpha),
        }
        rows.append(row | {f"of it {label(kind)} (%)": cell("blind", kind, 100, 1, alpha) for kind in kinds})
    note = (
        f"Shares of all weight, tokens of {_captions(table)}. Blind spot: tokens that the reference LLM gives less "
        f"than {UNPREDICTABLE:g} and the picture does not decide. 'Of it' are its parts, which add up to it."
    )
    return Display("Where the weight falls", pd.DataFrame(rows), note)


class _Cells:
    """Cells of text for one unit."""

    def __init__(self, table: pd.DataFrame, unit: str) -> None:
        self.rows = table[table.unit == unit]

    def find(self, quantity: str, group: str, alpha: float | None = None) -> pd.DataFrame:
        rows = self.rows[(self.rows.quantity == quantity) & (self.rows.group == group)]
        return rows if alpha is None else rows[rows.alpha == alpha]

    def n(self, quantity: str, group: str) -> int:
        return int(self.find(quantity, group).n.iloc[0])

    def __call__(
        self, quantity: str, group: str, factor: float = 1, digits: int = 1, alpha: float | None = None
    ) -> str:
        found = self.find(quantity, group, alpha)
        if found.empty:
            return ""
        row = found.iloc[0]
        return spread(factor * row.value, factor * row.low, factor * row.high, digits)


def label(group: str) -> str:
    """The name people know for a group."""
    return GROUPS.get(group, group.removeprefix("class:"))


def weighting(alpha: float) -> str:
    return f"{name('ntp')} (α = 0)" if alpha == 0 else f"{name('prior')}, α = {alpha:g}"


def _of_prior(table: pd.DataFrame) -> list[float]:
    return sorted(alpha for alpha in table.alpha.dropna().unique() if alpha > 0)


def _captions(table: pd.DataFrame) -> str:
    return f"the first {int(table.captions.max()):,} training captions, ± half the width of an interval over these"


# The figure.


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Distributions of w of relevant and other words and tokens; each class's share of tokens and of weight."""
    words, tokens = study.table("words"), study.table("tokens")
    bars = [group for group in table.group.unique() if group.startswith("class:")]
    bars = bars or [group for group in ("relevant", "other") if group in set(table.group)]
    figure = style.figure(9.2, 6.6 if bars else 3.5)
    grid = figure.add_gridspec(2 if bars else 1, 2, height_ratios=[1, 1.1][: 2 if bars else 1])
    for column, (unit, rows, w) in enumerate((("word", words, words.weight), ("token", tokens, 1 - tokens.p_r))):
        _distribution(figure.add_subplot(grid[0, column]), unit, rows, w.to_numpy(), table)
    if bars:
        _bars(figure.add_subplot(grid[1, :]), bars, table)
    style.title(figure, "What the reference LLM does not expect, and what the picture decides")
    return figure


def _distribution(axes: Axes, unit: str, rows: pd.DataFrame, w: np.ndarray, table: pd.DataFrame) -> None:
    members, edges = groups(rows), np.linspace(0, 1, 26)
    for key in ("relevant", "other") if "relevant" in members else ("all",):
        part = w[members[key]]
        share = np.histogram(part, bins=edges)[0] * 100 / max(len(part), 1)
        colour = style.TOKENS[key]
        axes.stairs(share, edges, color=colour, linewidth=1.6, label=f"{label(key)}: {len(part):,}")
        axes.stairs(share, edges, color=colour, alpha=0.15, fill=True)
    axes.set_xlim(0, 1)
    axes.set_xlabel("w = 1 − $p_r$" + (", mean over the word" if unit == "word" else ""))
    axes.set_ylabel(f"share of the {unit}s (%)")
    auc = _Cells(table, unit)("auc", "relevant", digits=3)
    axes.set_title(f"{unit.capitalize()}s" + (f": AUC {auc}" if auc else ""))
    axes.legend(loc="upper center")


def _bars(axes: Axes, bars: list[str], table: pd.DataFrame) -> None:
    """A group of bars for each class, one bar for each α."""
    rows = table[(table.unit == "token") & (table.quantity == "weight")]
    alphas = sorted(rows.alpha.unique())
    width = 0.84 / len(alphas)
    for place, alpha in enumerate(alphas):
        part = rows[rows.alpha == alpha].set_index("group").loc[bars]
        at = np.arange(len(bars)) + width * (place - (len(alphas) - 1) / 2)
        text = "NTP: share of the tokens" if alpha == 0 else f"α = {alpha:g}"
        axes.bar(at, 100 * part.value, width * 0.92, color=shade(alpha), label=text)
        reach = 100 * np.stack([part.value - part.low, part.high - part.value])
        if np.isfinite(reach).all():
            axes.errorbar(at, 100 * part.value, reach, linestyle="none", color=style.INK, elinewidth=0.8)
    axes.set_xticks(range(len(bars)), [label(group) for group in bars])
    axes.set_ylabel("share of the weight (%)")
    axes.grid(axis="x", visible=False)
    axes.set_title("Where the weight falls: NTP and PRIOR by α")
    axes.set_ylim(0, 118 * max(rows.value[rows.group.isin(bars)]))
    axes.legend(ncols=len(alphas), loc="upper right", columnspacing=1.2)


def shade(alpha: float) -> tuple[float, float, float]:
    """NTP's colour, or PRIOR's, the darker the larger α is."""
    from matplotlib.colors import to_rgb

    if alpha == 0:
        return to_rgb(style.colour("ntp"))
    place = float(np.clip((np.log2(alpha) + 1) / 3, 0, 1))
    red, green, blue = np.array(to_rgb(style.colour("prior")))
    light, dark = np.array([1.0, 0.86, 0.72]), np.array([red, green, blue]) * 0.55
    middle = np.array([red, green, blue])
    mixed = light + (middle - light) * place / 0.5 if place < 0.5 else middle + (dark - middle) * (place - 0.5) / 0.5
    return tuple(map(float, mixed))  # type: ignore[return-value]
