"""Mutual information of held-out tokens with their pictures: does PRIOR's weight track it, and who gains by it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from eval import style
from eval.display import Display, name, number, seeds, spread, tokens
from eval.gather.classes import CLASSES
from eval.outcomes.scores import label
from eval.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM = ["arch", "objective", "scale_tokens", "unit"]
COLUMNS = [*ARM, "quantity", "group", "bin", "x", "value", "low", "high", "seeds", "n", "other_seed"]
VALUES = [*ARM, "seed", "other_seed", "quantity", "group", "bin", "x", "n", "value"]
MAIN = ("all", "relevant", "other")
# Of PRIOR at α = 1, which the weights are of.
JUDGES = ("ntp", "prior")
# A mean of fewer tokens is not drawn.
FEW = 20
GAIN = "NLL under NTP − under the objective (nats)"
# What a row of panels shows, and what stands beside and below it.
PANELS = {
    "mi": ("what the picture tells", "mean MI with the picture (nats)", "w = 1 − $p_r$, mean of a tenth of the tokens"),
    "gain": ("who gains", GAIN, "tenths of the tokens by MI under NTP, and its mean (nats)"),
    "gain_by_w": ("who pays", GAIN, "tenths of the tokens by w, and its mean"),
}


def table(study: Study) -> pd.DataFrame:
    """Mutual information (MI, nats) of held-out tokens and words with their pictures, against PRIOR's w.

    MI is ``log p(t | v, t<) − log p(t | t<)`` of one trained LVLM, with its picture and without; of a word the sum over
    its tokens.

    Columns `COLUMNS`: of an arm and unit (token or word) a quantity in a group (all, relevant, other, ``class:…``), as
    mean over seeds with its t interval: `value`, `low`, `high`, `seeds`. `n` is the number of tokens or words; `bin` a
    tenth of them (0 the lowest; −1: all), and `x` the mean of what they are sorted by. Quantities:

    ``rho_w``
        Spearman's correlation of w with MI.
    ``mi``
        mean MI, by tenths of w (`x`), and of all.
    ``share``, ``weight_share``, ``part``
        a group's share of the tokens, of PRIOR's weight (α = 1), and its part of the mean MI of all tokens, nats.
    ``fall``
        by how much the mean MI falls at most from one tenth of w to a higher one, nats: 0 if MI never falls.
    ``off``
        how far the mean MI of the tenths lies from being proportional to their PRIOR's weight: root mean square, nats.
    ``rho_gain``
        Spearman's correlation of the MI of an NTP run with the gain of this run over NTP.
    ``gain``, ``gain_by_w``
        NTP's NLL minus this run's (nats, same seed), by tenths of that MI (`x`), and of all; by tenths of w (`x`).

    `other_seed` is false where the MI that gains are held against comes from the NTP run that they are gains over, for
    want of another seed: the same chance is then in both.
    """
    gathered = study.table("mutual")
    names = ("arch", "objective", "unit", "group", "by")
    gathered = gathered.astype({key: object for key in names} | {key: float for key in ("w", "mi", "gain", "weight")})
    gathered = gathered.assign(other_seed=gathered.judge != gathered.seed)
    parts = [_of_groups(gathered[gathered.by == "all"])]
    for by, quantity, of in (("w", "mi", "mi"), ("w", "gain_by_w", "gain"), ("mi", "gain", "gain")):
        tenths = gathered[gathered.by == by]
        parts.append(tenths.assign(quantity=quantity, x=tenths[by], value=tenths[of]))
    parts.append(_of_profiles(gathered[gathered.by == "w"]))
    found = pd.concat([part[VALUES] for part in parts], ignore_index=True).dropna(subset="value")
    return _over_seeds(found, study.settings.confidence)


def _of_groups(rows: pd.DataFrame) -> pd.DataFrame:
    """What each run says of whole groups, a row for each quantity."""
    run = [*ARM, "seed"]
    whole = rows[rows.group == "all"].set_index(run)[["n", "weight"]].add_prefix("all_")
    rows = rows.join(whole, on=run)
    share = rows.n / rows.all_n
    rows = rows.assign(share=share, weight_share=share * rows.weight / rows.all_weight, part=share * rows.mi, x=np.nan)
    quantities = ["rho_w", "rho_gain", "mi", "gain", "share", "weight_share", "part"]
    keys = [column for column in VALUES if column not in ("quantity", "value")]
    return rows.melt(id_vars=keys, value_vars=quantities, var_name="quantity")


def _of_profiles(rows: pd.DataFrame) -> pd.DataFrame:
    """How far each run's profile over the tenths of w is from the claim."""
    profiles = rows.sort_values("bin").groupby([*ARM, "seed", "other_seed", "group"], sort=False)
    records = []
    for key, part in profiles:
        mi, weight = part.mi.to_numpy(), part.weight.to_numpy()
        values = {"fall": largest_fall(mi), "off": off_proportion(weight, mi)}
        same = dict(zip([*ARM, "seed", "other_seed", "group"], key, strict=True))
        same |= {"bin": -1, "x": np.nan, "n": int(part.n.sum())}
        records += [same | {"quantity": quantity, "value": value} for quantity, value in values.items()]
    return pd.DataFrame(records, columns=VALUES)


def _over_seeds(found: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Means over seeds with t intervals as in `eval.statistics.mean_interval`, all at once: there are thousands."""
    grouped = found.groupby([*ARM, "quantity", "group", "bin"], sort=True)
    table = grouped.agg(
        x=("x", "mean"),
        value=("value", "mean"),
        spread=("value", "std"),
        seeds=("value", "size"),
        n=("n", "mean"),
        other_seed=("other_seed", "all"),
    ).reset_index()
    with np.errstate(invalid="ignore"):
        half = stats.t.ppf((1 + confidence) / 2, table.seeds - 1) * table.spread / np.sqrt(table.seeds)
    table = table.assign(low=table.value - half, high=table.value + half, n=table.n.round().astype(int))
    return table[COLUMNS]


def largest_fall(values: np.ndarray) -> float:
    """By how much values fall at most from one to a later one; 0 where they never fall."""
    return float(np.max(np.maximum.accumulate(values) - values))


def off_proportion(weight: np.ndarray, mi: np.ndarray) -> float:
    """Root mean square distance of `mi` from what has the same mean and is proportional to `weight`."""
    return float(np.sqrt(np.mean((mi - mi.mean() * weight / weight.mean()) ** 2)))


# How people see them.


def show(table: pd.DataFrame) -> list[Display]:
    """Whether weight tracks MI, who has it, and who gains, at the largest scale; and what changes with the scale."""
    largest = table[table.scale_tokens == table.scale_tokens.max()]
    shown = [_tracking(largest), _by_class(largest)]
    there = set(largest.quantity)
    shown += [what(largest) for quantity, what in (("gain", _gains), ("gain_by_w", _price)) if quantity in there]
    return [*shown, _by_scale(table)] if table.scale_tokens.nunique() > 1 else shown


def _tracking(table: pd.DataFrame) -> Display:
    rows = []
    kinds = [group for group in MAIN if group in set(table.group)]
    for (unit, arch, _, objective), arm in _cells(table[table.objective.isin(JUDGES)]):
        row = {"": name(arch), "unit": unit, "trained under": name(objective)}
        row |= {f"ρ(w, MI), {label(group)}": _cell(arm, "rho_w", group, 3) for group in kinds}
        row["mean MI (nats)"] = _cell(arm, "mi", "all", 3)
        row["largest fall (nats)"] = _cell(arm, "fall", "all", 3)
        rows.append(row | {"off proportion (nats)": _cell(arm, "off", "all", 3)})
    note = (
        f"{_mean(table)}, over the same held-out captions. w = 1 − p_r; MI = log p with the picture − log p without, "
        "of the same model; ρ is Spearman's. If PRIOR's weight tracked MI, ρ would be near 1, the mean MI would not "
        "fall from one tenth of the tokens by w to a higher one, and it would be proportional to the tenths' mean "
        "weight (α = 1), from which it is off by a root mean square of this much."
    )
    return Display("Does the weight track mutual information?", pd.DataFrame(rows), note)


def _trained(table: pd.DataFrame) -> str:
    return f"Trained with {tokens(float(table.scale_tokens.max()))} caption tokens; mean over {seeds(table)}"


def _mean(table: pd.DataFrame) -> str:
    return f"{_trained(table)} ± half the width of its t interval"


def _by_scale(table: pd.DataFrame) -> Display:
    rows = []
    parts = table[(table.unit == "token") & table.objective.isin(JUDGES)]
    for (_, arch, scale, objective), arm in _cells(parts):
        row = {"": name(arch), "caption tokens": tokens(scale), "trained under": name(objective)}
        row |= {"mean MI (nats)": _cell(arm, "mi", "all", 3), "ρ(w, MI)": _cell(arm, "rho_w", "all", 3)}
        row["gain over NTP (nats)"] = _cell(arm, "gain", "all", 3, sign=True)
        rows.append(row | {"ρ(MI, gain)": _cell(arm, "rho_gain", "all", 3, sign=True)})
    note = f"All held-out tokens; mean over {seeds(parts)} ± half the width of its t interval."
    return Display("Mutual information by data scale", pd.DataFrame(rows), note)


def _by_class(table: pd.DataFrame) -> Display:
    present = set(table.group)
    classes = [group for group in (f"class:{kind}" for kind in CLASSES) if group in present]
    kinds = ["all", *classes] if classes else [group for group in MAIN if group in present]
    rows = []
    for (unit, arch, *_), arm in _cells(table[table.objective == "ntp"]):
        for group in kinds:
            if arm[arm.group == group].empty:
                continue
            row = {"": name(arch), "unit": unit, "of": label(group)}
            row["mean MI (nats)"] = _cell(arm, "mi", group, 3)
            row["part of the mean MI (nats)"] = _cell(arm, "part", group, 3)
            row["share of them (%)"] = number(100 * _value(arm, "share", group), 1)
            row["share of PRIOR's weight (%)"] = number(100 * _value(arm, "weight_share", group), 1)
            rows.append(row)
    note = (
        f"{_mean(table)}, under NTP. Visual words are those that the picture decides. Classes with a large share of "
        "the weight (α = 1) and next to no part of the MI are weighed up although the picture does not tell them."
    )
    return Display("Mutual information and weight by class", pd.DataFrame(rows), note)


def _gains(table: pd.DataFrame) -> Display:
    rows = []
    kinds = [group for group in MAIN if group in set(table.group)]
    gains = table[table.quantity.isin(["gain", "rho_gain"])]
    for (unit, arch, _, objective), arm in _cells(gains):
        bins = arm[(arm.bin >= 0) & (arm.group == "all")]
        row = {"": name(arch), "unit": unit, "trained under": name(objective)}
        row |= {f"ρ(MI, gain), {label(group)}": _cell(arm, "rho_gain", group, 3, sign=True) for group in kinds}
        row["gain, all (nats)"] = _cell(arm, "gain", "all", 3, sign=True)
        for head, place in (("gain, lowest tenth by MI", 0), ("gain, highest tenth by MI", bins.bin.max())):
            row[head] = _cell(bins[bins.bin == place], "gain", "all", 3, sign=True, bin=None)
        rows.append(row)
    note = f"{_mean(gains)}. Gain: NLL under NTP minus NLL under the objective, same seed, in nats. {_judge(gains)}"
    return Display("Who gains over NTP?", pd.DataFrame(rows), note)


def _price(table: pd.DataFrame) -> Display:
    rows = []
    gains = table[(table.quantity == "gain_by_w") & (table.unit == "token") & (table.group == "all")]
    for (_, arch, _, objective), arm in _cells(gains):
        row = {"": name(arch), "trained under": name(objective)}
        for part in arm.sort_values("bin").itertuples():
            row[f"{part.bin + 1}: w {number(part.x, 2)}"] = number(part.value, 2, sign=True)
        rows.append(row)
    note = (
        f"Held-out tokens, tenths by w and their mean w. {_trained(gains)}. Gain: NLL under NTP minus NLL "
        "under the objective, same seed, in nats. A weight below the mean is a loss that training looks at less."
    )
    return Display("Who pays for it? Gain over NTP by weight", pd.DataFrame(rows), note)


def _judge(gains: pd.DataFrame) -> str:
    if gains.other_seed.all():
        return (
            "MI comes from an NTP run of another seed than the gain: with the same one, chance in its NLL would be a "
            "part of both, and make them agree."
        )
    return (
        "MI comes from the very NTP run that the gain is over, there being one seed: chance in its NLL is a part of "
        "both, and makes them agree more than they do."
    )


def _cells(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, float, str], pd.DataFrame]]:
    """Arms in the order of rows: words first; NTP, PRIOR, then the others."""
    first = {objective: place for place, objective in enumerate(JUDGES)}
    arms = [
        ((str(unit), str(arch), float(scale), str(objective)), part)
        for (unit, arch, scale, objective), part in table.groupby(["unit", "arch", "scale_tokens", "objective"])
    ]
    arms.sort(key=lambda arm: (arm[0][0] != "word", *arm[0][1:3], first.get(arm[0][3], len(first)), arm[0][3]))
    yield from arms


def _value(arm: pd.DataFrame, quantity: str, group: str) -> float:
    return float(arm[(arm.quantity == quantity) & (arm.group == group)].value.iloc[0])


def _cell(
    arm: pd.DataFrame,
    quantity: str,
    group: str,
    digits: int,
    sign: bool = False,
    bin: int | None = -1,
) -> str:
    found = arm[(arm.quantity == quantity) & (arm.group == group)]
    found = found if bin is None else found[found.bin == bin]
    if found.empty:
        return ""
    row = found.iloc[0]
    return spread(row.value, row.low, row.high, digits, sign)


# The figure.


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Tokens at the largest scale: MI by tenths of w, relevant and other; gain over NTP by tenths of MI, and of w."""
    rows = table[(table.unit == "token") & (table.scale_tokens == table.scale_tokens.max()) & (table.bin >= 0)]
    archs = sorted(set(rows.arch))
    panels = [quantity for quantity in PANELS if quantity in set(rows.quantity)]
    figure = style.figure(4.5 * len(archs) + 0.3, 3.3 * len(panels) + 0.7)
    for place, quantity in enumerate(panels):
        what, side, below = PANELS[quantity]
        first: Axes | None = None
        for column, arch in enumerate(archs):
            axes = figure.add_subplot(len(panels), len(archs), place * len(archs) + column + 1, sharey=first)
            part = rows[(rows.arch == arch) & (rows.quantity == quantity)]
            if quantity == "mi":
                _mi(axes, part)
            else:
                _gain(axes, part[part.group == "all"])
            axes.set_title(f"{name(arch)}: {what}")
            axes.set_xlabel(below)
            if first is None:
                axes.set_ylabel(side)
                axes.legend(loc="upper left" if quantity == "mi" else "best")
            first = first or axes
    style.title(figure, f"Tokens by what their picture tells ({tokens(float(rows.scale_tokens.max()))} caption tokens)")
    return figure


def _mi(axes: Axes, rows: pd.DataFrame) -> None:
    """MI by tenths of w, of models trained under NTP and, dashed, under PRIOR; without those that are almost empty."""
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    groups = [group for group in ("relevant", "other") if group in set(rows.group)] or ["all"]
    for group in groups:
        for objective in JUDGES:
            part = rows[(rows.objective == objective) & (rows.group == group) & (rows.n >= FEW)].sort_values("x")
            if part.empty:
                continue
            colour, solid = style.TOKENS[group], objective == "ntp"
            of = "" if group == "all" else f"{label(group)} tokens, "
            look = {"color": colour, "linestyle": "-" if solid else style.DASHED, "label": f"{of}{name(objective)}"}
            _line(axes, part, style.marker(objective), colour if solid else "white", look)
    axes.set_xlim(-0.02, 1.02)


def _gain(axes: Axes, rows: pd.DataFrame) -> None:
    """Tenths side by side: most tokens have next to no MI, and would lie on one another."""
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    for (_, _, _, objective), part in _cells(rows):
        colour, part = style.colour(objective), part.assign(x=part.bin).sort_values("x")
        _line(axes, part, style.marker(objective), colour, {"color": colour, "label": name(objective)})
    centres = rows.groupby("bin").x.mean()
    axes.set_xticks(list(centres.index), [number(value, 2, sign=centres.min() < 0) for value in centres])
    axes.tick_params(axis="x", labelsize=7.5)


def _line(axes: Axes, part: pd.DataFrame, marker: str, face: str, look: dict[str, object]) -> None:
    reach = np.stack([part.value - part.low, part.high - part.value])
    axes.errorbar(
        part.x,
        part.value,
        reach if np.isfinite(reach).all() else None,
        marker=marker,
        markersize=4.5,
        markerfacecolor=face,
        elinewidth=1,
        capsize=2,
        **look,
    )
