"""Evidence from benchmarks: gains over NTP, the best checkpoints, the ablation of α, made-up objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from eval.chair import EQUAL
from eval.claims.evidence import UNIT, Evidence, able, mean_of, pairs, ratio_of
from eval.display import name, spread, tokens
from eval.outcomes import stability
from eval.outcomes.alpha import shared
from eval.outcomes.trajectory import numbered, on_the_way
from eval.results import BASELINE, HELDOUT, Score, averaged, averages, final, scores, select
from eval.statistics import over_seeds
from eval.study import Missing, Study

# How many scores the paper averages.
SIX = 6


def improvement(study: Study, arch: str) -> Evidence:
    """By how many percent PRIOR's raw average is above NTP's in one setting, over all scales."""
    columns = _columns(study)
    if arch not in set(study.compared.arch):
        raise Missing("this setting was not trained")
    averaged_ = _averages(select(final(study.compared), picture="with", arch=arch), columns, "raw")
    found = ratio_of(*pairs(averaged_), study)
    last = averaged_[averaged_.scale_tokens == averaged_.scale_tokens.max()]
    alone = ratio_of(*pairs(last), study)
    said = spread(alone.value, alone.low, alone.high, 1, sign=True, bounds=True)
    return able(replace(found, note=f"at the largest scale alone {said} %"), study, columns, arch)


def corrected(study: Study) -> Evidence:
    """PRIOR − NTP, average with guessing as 0 and perfection as 1, over scales and seeds, in the worse setting.

    A test in each setting, and all must pass: the worse mean, the worse side of the intervals and the larger p.
    """
    columns = _columns(study)
    rows = _averages(select(final(study.compared), picture="with"), columns, "corrected")
    ours, base = pairs(rows)
    gaps = {arch: part for arch, part in (ours - base).groupby(level="arch")}
    if len(gaps) < 2:
        raise Missing(f"one setting was trained, {', '.join(map(name, gaps))}, not both")
    each = {arch: able(mean_of(part, study), study, columns, arch) for arch, part in gaps.items()}
    sides = list(each.values())
    note = ", ".join(
        f"{name(arch)} {spread(side.value, side.low, side.high, 3, sign=True, bounds=True)}"
        for arch, side in each.items()
    )
    return replace(
        mean_of(ours - base, study, note=note),
        value=min(side.value for side in sides),
        low=min(side.low for side in sides),
        high=min(side.high for side in sides),
        p=max(side.p for side in sides),
        each=min(side.n for side in sides),
        fixed=next((f"{name(arch)}: {side.fixed}" for arch, side in each.items() if side.fixed), ""),
    )


def best_checkpoint(study: Study) -> Evidence:
    """By how many percent the best of PRIOR's checkpoints at the largest scale is above the best of NTP's."""
    rows, columns = _on_the_way(study)
    best = rows.groupby(["objective", *UNIT], as_index=False).value.max()
    found = ratio_of(*pairs(best), study, note=_asked(study, columns))
    papers = len(columns) == SIX and all(score.in_paper for score in columns)
    return able(replace(found, comparable=papers), study, columns)


def between_checkpoints(study: Study) -> Evidence:
    """PRIOR − NTP, how far a checkpoint's score is off its neighbours (`eval.outcomes.stability`), root mean square."""
    rows, columns = _on_the_way(study)
    arms = ["arch", "objective", "scale_tokens"]
    spread = [
        np.sqrt(stability.between_checkpoints(part))
        .rename("value")
        .rename_axis("seed")
        .reset_index()
        .assign(**dict(zip(arms, key, strict=True)))
        for key, part in rows.groupby(arms)
    ]
    if not all(len(part) for part in spread):
        raise Missing("fewer than three checkpoints of a training were asked")
    ours, base = pairs(pd.concat(spread))
    return able(mean_of(ours - base, study, note=_asked(study, columns)), study, columns)


def against_alpha(study: Study, alpha: float, base: float) -> Evidence:
    """The corrected average at one α minus that at another, at the largest scale of the ablation."""
    rows, columns = _ablated(study)
    ours, theirs = (_objective(study, value) for value in (alpha, base))
    first, second = pairs(rows, ours, theirs)
    return able(mean_of(first - second, study, objectives=(theirs, ours)), study, columns)


def plateau(study: Study) -> Evidence:
    """Half of what α = 1 gains over NTP, minus how far α = 2 is from α = 1: above zero on both sides, it is a plateau.

    Two tests that must both pass: of half the gain minus the difference, and of half the gain plus it. The side that
    is nearer to the edge gives the value; its interval and p are the worse of the two.
    """
    rows, columns = _ablated(study)
    zero, one, more = (_objective(study, alpha) for alpha in (0, 1, 2))
    ours, ntp = pairs(rows, one, zero)
    two, _ = pairs(rows, more, one)
    gain = over_seeds(ours - ntp, study.settings.confidence)
    arms = (zero, one, more)
    sides = [mean_of((ours - ntp) / 2 + sign * (two - ours), study, objectives=arms) for sign in (1, -1)]
    nearer = min(sides, key=lambda side: side.value)
    found = replace(nearer, low=min(side.low for side in sides), p=max(side.p for side in sides))
    if not gain.low > 0:
        found = replace(found, fixed="the gain of α = 1 over NTP is not above zero: there is no plateau to be on")
    return able(found, study, columns)


def hallucination(study: Study) -> Evidence:
    """PRIOR − NTP, share of made-up objects in captions of equal length, in percentage points."""
    rows = select(final(study.compared), picture="with", benchmark="CHAIR", metric="chair_i" + EQUAL)
    if rows.empty:
        raise Missing("no captions were asked for")
    if not rows.n_items.all():
        raise Missing("a model's captions mention no object at all, so that none can be made up")
    ours, base = pairs(rows)
    return mean_of(ours - base, study)


def _columns(study: Study) -> list[Score]:
    """The paper's benchmarks."""
    found = [score for score in study.columns if score.in_paper]
    if not found:
        raise Missing("none of the paper's benchmarks was asked")
    return found


def _averages(rows: pd.DataFrame, columns: list[Score], kind: str, step: bool = False) -> pd.DataFrame:
    """The average ``raw`` or ``corrected``, as of `eval.results.averages`, of each run, or of each `step` of it.

    Steps at which not all columns were asked are left out.

    Raises
    ------
    Missing
        If one of the runs in `rows` has none: the mean would be over fewer of them.
    """
    used, run = averaged(columns), ["objective", *UNIT]
    if kind == "corrected" and (dark := [s.label for s in used if not np.isfinite([s.chance, s.best]).all()]):
        raise Missing(f"it is not known what guessing or perfection would give in {', '.join(dark)}")
    arm = ["objective", "arch", "scale_tokens", *(["step"] if step else [])]
    parts = [pd.DataFrame(columns=[*arm, "seed", "value"])]
    for key, part in rows.groupby(arm):
        values = averages(part, columns).get(kind, pd.Series(dtype=float)).dropna()
        own = values.rename("value").rename_axis("seed").reset_index()
        parts.append(own.assign(**dict(zip(arm, key, strict=True))))
    table = pd.concat([part for part in parts if len(part)] or parts[:1])
    expected = dict.fromkeys(rows[run].itertuples(index=False, name=None))
    there = set(table[run].itertuples(index=False, name=None))
    if lost := [key for key in expected if key not in there]:
        objective, arch, scale, _ = lost[0]
        own = select(rows, objective=objective, arch=arch, scale_tokens=scale)
        asked = set(zip(own.benchmark, own.metric, strict=True))
        lacking = [score.label for score in used if (score.benchmark, score.metric) not in asked]
        what = f"{', '.join(lacking)} not asked" if lacking else "benchmarks not asked of the same checkpoints"
        raise Missing(f"{what} of {arch}/{objective} at {tokens(scale)} caption tokens")
    if table.empty:
        raise Missing("none of the benchmarks was asked")
    return table


def _on_the_way(study: Study) -> tuple[pd.DataFrame, list[Score]]:
    """The raw average of each checkpoint on the way, of those benchmarks that were asked there."""
    models = select(study.compared, picture="with")
    models = models[models.arch != BASELINE]
    asked = on_the_way(models[models.scale_tokens == models.scale_tokens.max()])
    if asked.empty:
        raise Missing("no benchmark was asked on the way")
    columns = scores(asked, study.items)
    rows = _averages(asked, columns, "raw", step=True)
    arms = [
        numbered(part, f"{arch}/{objective} on the way")
        for (arch, objective), part in rows.groupby(["arch", "objective"])
    ]
    return pd.concat(arms, ignore_index=True), averaged(columns)


def _asked(study: Study, columns: list[Score]) -> str:
    scale = tokens(float(study.compared.scale_tokens.max()))
    return f"asked on the way: {', '.join(score.label for score in columns)}, at {scale} caption tokens alone"


def _ablated(study: Study) -> tuple[pd.DataFrame, list[Score]]:
    """The corrected average of every α at the largest scale that has one beside 0 and 1."""
    others = [name for name, alpha in study.alphas.items() if alpha not in (0, 1)]
    scale = study.metrics[study.metrics.objective.isin(others)].scale_tokens.max()
    if pd.isna(scale):
        raise Missing("no other α was trained")
    columns, models = _columns(study), select(study.metrics, picture="with", scale_tokens=scale)
    models = models[models.objective.isin(study.alphas)]
    # Which of the objectives end earlier is known by held-out losses, too: these are dropped afterwards.
    rows = pd.concat([shared(part) for _, part in models.groupby("arch")])
    return _averages(rows[rows.benchmark != HELDOUT], columns, "corrected"), columns


def _objective(study: Study, alpha: float) -> str:
    found = [name for name, value in study.alphas.items() if value == alpha]
    if not found or found[0] not in set(study.metrics.objective):
        raise Missing(f"α = {alpha:g} was not trained")
    return found[0]
