"""What held-out tokens learn from their picture in trained LVLMs, against what PRIOR weighs them by.

The pointwise mutual information of a token with its picture is ``log p(t | v, t<) − log p(t | t<)``, in nats, both from
the same LVLM, asked with its picture and without.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from eval.gather.classes import groups
from eval.gather.words import describe, first_tokens, of_words
from eval.results import RUN
from prior.config import Preset, Run, parse_run, parse_tokens
from prior.errors import UserError
from prior.tokens import read_ragged, read_table
from prior.weighting import prior_weights

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

BINS = 10
JUDGED = [*RUN, "judge"]
MEANS = ["w", "weight", "mi", "nll", "gain"]
COLUMNS = [*JUDGED, "unit", "group", "by", "bin", "n", *MEANS, "rho_w", "rho_gain"]


@dataclass(frozen=True)
class Measured:
    """What one run says of the held-out tokens or words: ``nll`` with the picture and ``mi``, in nats."""

    nll: np.ndarray
    mi: np.ndarray


@dataclass(frozen=True)
class Unit:
    """The held-out tokens, or the words that they make up.

    Attributes
    ----------
    w
        1 − p_r; of a word the mean over its tokens.
    weight
        PRIOR's weight at α = 1, ``k·w/Σw`` within the caption; of a word the sum over its tokens.
    groups
        Which of them belong to each group.
    """

    name: str
    w: np.ndarray
    weight: np.ndarray
    groups: dict[str, np.ndarray]
    starts: np.ndarray | None = None
    inside: np.ndarray | None = None
    bins: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", equal_bins(self.w))

    def of(self, logprob: np.ndarray, blind: np.ndarray) -> Measured:
        """A run's log-probabilities of all tokens, with the picture and without, for this unit."""
        nll, mi = -logprob.astype(np.float64), logprob.astype(np.float64) - blind
        if self.starts is None:
            return Measured(nll, mi)
        return Measured(np.add.reduceat(nll[self.inside], self.starts), np.add.reduceat(mi[self.inside], self.starts))


def mutual(
    results: Path, preset: Preset, scores: Path, records: Any, tokenizer: PreTrainedTokenizerFast
) -> pd.DataFrame:
    """Mutual information of held-out tokens and words with their pictures, in every run, by PRIOR's w.

    Tokens with a large mutual information are told by an NTP run of *another* seed, where there is one: the loss under
    NTP is a part of both that and of the gain over NTP, and its chance part would make them agree.

    Parameters
    ----------
    scores
        log p_r of the held-out captions.
    records
        The held-out captions.

    Returns
    -------
    DataFrame with the columns `COLUMNS`
        ``judge`` is the seed of the NTP run that tells the mutual information for `by` = mi. `unit` is token or word.
        `group` is all, relevant, other, or ``class:`` and a class of words. `by` is all (one row per group, the only
        kind at scales below the largest), w or mi, with `bin` the tenth of the tokens, from the lowest. Then the number
        ``n`` in the bin, and means in it: ``w``, ``weight``, ``mi`` (for `by` = mi the judge's), ``nll`` and ``gain``
        (NTP's NLL minus this run's, same seed, nats; NaN for NTP and for runs that end earlier). For `by` = all
        Spearman's ``rho_w`` (w and the run's mutual information) and ``rho_gain`` (the judge's and the gain).

    Raises
    ------
    UserError
        If the scores are not those of the tokens that the runs were asked.
    """
    runs = [parse_run(name) for name in preset.runs()]
    first = read_table(_file(results, runs[0]))
    scored = read_table(scores).slice(0, len(first))
    for name in ("id", "input_ids"):
        if not scored[name].equals(first[name]):
            raise UserError(f"{scores}: its captions or tokens are not those of {_file(results, runs[0])}; score again")
    tokens = describe(records.select(range(len(first))), tokenizer, preset.corpus)
    kinds = units(tokens, read_ragged(scored["logprob"]).values)
    largest = preset.scales[-1]
    tables = []
    for (arch, scale), cell in itertools.groupby(
        sorted(runs, key=lambda run: (run.arch, preset.scales.index(run.scale))), lambda run: (run.arch, run.scale)
    ):
        members = list(cell)
        asked = {run: _logprobs(results, run, first) for run in members}
        seeds = sorted({run.seed for run in members})
        for unit in kinds:
            measured = {run: unit.of(*asked[run]) for run in members}
            ntp = {run.seed: found for run, found in measured.items() if run.objective == "ntp"}
            for run, found in measured.items():
                judge = seeds[(seeds.index(run.seed) + 1) % len(seeds)]
                fair = run.objective != "ntp" and preset.objectives[run.objective].steps is None
                gain = ntp[run.seed].nll - found.nll if fair else None
                table = summarise(unit, found, ntp[judge].mi, gain, binned=scale == largest)
                key = dict(zip(JUDGED, (arch, run.objective, parse_tokens(scale), run.seed, judge), strict=True))
                tables.append(table.assign(**key, unit=unit.name))
    return _small(pd.concat(tables, ignore_index=True)[COLUMNS])


def units(tokens: pd.DataFrame, logprob: np.ndarray) -> list[Unit]:
    """Words and tokens of `eval.gather.words.describe`, with log p_r beside the tokens."""
    w = -np.expm1(logprob.astype(np.float64))
    caption = torch.from_numpy(tokens.caption.to_numpy(dtype=np.int64))
    weight = prior_weights(torch.from_numpy(logprob.copy()), caption).numpy().astype(np.float64)
    inside, starts = first_tokens(tokens)
    counts = np.diff(np.append(starts, inside.sum()))
    mean = np.add.reduceat(w[inside], starts) / counts
    words = Unit("word", mean, np.add.reduceat(weight[inside], starts), groups(of_words(tokens)), starts, inside)
    return [words, Unit("token", w, weight, groups(tokens))]


def summarise(unit: Unit, found: Measured, judge: np.ndarray, gain: np.ndarray | None, binned: bool) -> pd.DataFrame:
    """The rows of one run and unit, without its keys; see `mutual`."""
    values = pd.DataFrame({"w": unit.w, "weight": unit.weight, "mi": found.mi, "nll": found.nll})
    values["gain"] = np.nan if gain is None else gain
    tables = []
    for name, mask in unit.groups.items():
        part = values[mask]
        rho_gain = np.nan if gain is None else rank_correlation(judge[mask], gain[mask])
        overall = (
            part.mean()
            .to_frame()
            .T.assign(n=len(part), by="all", bin=-1, rho_w=rank_correlation(part.w, part.mi), rho_gain=rho_gain)
        )
        tables.append(overall.assign(group=name))
        if binned and not name.startswith("class:"):
            sorts = {"w": (unit.bins, values)}
            if gain is not None:
                sorts["mi"] = (equal_bins(judge), values.assign(mi=judge))
            for by, (bins, what) in sorts.items():
                grouped = what[mask].groupby(bins[mask])
                table = grouped.mean().assign(n=grouped.size()).rename_axis("bin").reset_index()
                tables.append(table.assign(by=by, group=name, rho_w=np.nan, rho_gain=np.nan))
    return pd.concat(tables, ignore_index=True)


def equal_bins(values: np.ndarray) -> np.ndarray:
    """The tenth of the values that each belongs to, 0 the lowest; of equal ones the first are the lower."""
    order = np.argsort(values, kind="stable")
    bins = np.empty(len(values), dtype=np.int64)
    bins[order] = np.arange(len(values)) * BINS // len(values)
    return bins


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation; NaN for fewer than three values or where one side does not vary."""
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


def _file(results: Path, run: Run) -> Path:
    return results / "runs" / "/".join(map(str, run[:3])) / f"seed{run.seed}" / "pretrain/token_logprobs.arrow"


def _logprobs(results: Path, run: Run, first: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """A run's log p of all held-out tokens, with the picture and without."""
    path = _file(results, run)
    table = read_table(path)
    if not table["input_ids"].equals(first["input_ids"]):
        raise UserError(f"{path}: its tokens are not those of the other runs; train this run again")
    return read_ragged(table["logprob"]).values, read_ragged(table["logprob_without_picture"]).values


def _small(table: pd.DataFrame) -> pd.DataFrame:
    """The same in types that take little room."""
    kinds: dict[str, Any] = {name: "float32" for name in [*MEANS, "rho_w", "rho_gain"]}
    kinds |= {name: "category" for name in ("arch", "objective", "unit", "group", "by")}
    return table.astype(kinds | {"seed": "int16", "judge": "int16", "bin": "int8", "n": "int32"})
