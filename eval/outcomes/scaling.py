"""Loss and benchmark error against caption tokens: the curves, how objectives compare, what more data might give."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval import style
from eval.display import Display, name, number, seeds, spread, tokens
from eval.fits.forms import HUBER_DELTA
from eval.outcomes.dots import objectives_of
from eval.outcomes.losses import LOSS_LABEL
from eval.results import arms, select
from eval.scaling import DEVIATION, ONE_SEED, find, interval, law, quantities, seed_laws
from eval.statistics import mean_interval
from eval.study import Missing, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["what", "arch", "objective", "quantity", "form", "estimate", "low", "high", "seeds", "p", "A", "b", "E"]
COLUMNS += ["chance", "aicc", "aicc_separate", "deviation", "scale", "leave_out", "baseline", "extrapolated", "remark"]
WORDS = ["what", "arch", "objective", "quantity", "form", "extrapolated", "remark"]
# How far curves are drawn beyond the largest scale.
BEYOND = 4.0


def table(study: Study) -> pd.DataFrame:
    """Every record of the fits, a row each.

    Columns: what (``exponent``, ``floor``, ``difference``, ``joint``, ``ratio``, and ``leave_out``: predicting the
    largest scale), arch, objective, quantity, form, estimate, low, high, seeds, p, A, b, E and chance of the curve
    through the means, aicc (where `what` is ``joint`` of one exponent for both arms, beside it that of two:
    aicc_separate), deviation (largest, percent), scale and signed error in percent of its prediction (leave_out) and
    of a straight line's (baseline), extrapolated (a ratio that leads beyond the scales: yes or no), and remark: why
    something is not given, or what to know of it. `eval.scaling` describes the records.
    """
    if not study.fits:
        raise Missing("no curve was fitted; make fits.json first")
    rows: list[dict[str, Any]] = []
    for record in study.fits:
        key = {column: record[column] for column in ("arch", "objective", "quantity", "form")}
        kind, remark = record["kind"], record["refused"] or ""
        found = interval(record["ratio"] if kind == "ratio" else record["exponent"])
        row = key | {"what": kind, "remark": remark} | _bounds(found)
        if kind != "fit":
            more = {
                "p": record.get("p"),
                "aicc": record.get("aicc_shared"),
                "aicc_separate": record.get("aicc_separate"),
            }
            outside = record.get("extrapolated")
            rows.append(row | more | {"extrapolated": "" if outside is None else "yes" if outside else "no"})
            continue
        curve = law(record)
        if curve:
            row |= {"A": curve.A, "b": curve.b, "E": curve.E, "chance": curve.chance, "aicc": record["aicc"]}
            row["deviation"] = record[DEVIATION]
        rows.append(row | {"what": "exponent"})
        if record["floor"]:
            rows.append(
                key | {"what": "floor", "remark": record["floor"]["remark"]} | _bounds(interval(record["floor"]))
            )
        left = record["leave_out"]
        percent = {"leave_out": left["error_percent"], "baseline": left["baseline_percent"], "scale": left["scale"]}
        rows.append(key | {"what": "leave_out", "remark": left["refused"] or ""} | percent)
    made = pd.DataFrame(rows, columns=COLUMNS)
    numbers = [column for column in COLUMNS if column not in WORDS]
    return made.astype(dict.fromkeys(numbers, float)).fillna(dict.fromkeys(WORDS, ""))


def show(table: pd.DataFrame) -> list[Display]:
    """Exponents and their differences, the data ratio, the forms beside each other, and the largest scale predicted."""
    plain = table[table.form == "power"]
    if (own := plain[plain.what == "exponent"]).estimate.isna().all():
        # Where nothing could be fitted one sentence says more than tables of blanks.
        return [Display("Scaling curves", pd.DataFrame({"not fitted": list(dict.fromkeys(own.remark))}))]
    width = seeds(own)
    shown = [
        Display(
            "Exponents of power laws",
            _side_by_side(plain),
            f"b of A·x^−b, x: caption tokens: mean over {width} of one fit each ± half the width of its t interval; "
            "differences paired by seed. A larger b falls faster. Error is 1 − accuracy. One b: shared by both, whose "
            "levels differ; p: of a paired t test that they share it. Largest deviations (in the order of the b): by "
            "how much the curve through the means misses the worst of them; where this is not small beside the change "
            "over the scales, the curve is no power law and b says little.",
        )
    ]
    if (plain.what == "ratio").any():
        cells = _each(plain[plain.what == "ratio"], _ratios)
        note = (
            "How many times its data NTP would need for the value that the objective has at the largest scale, by "
            f"NTP's own exponent, with Fieller's interval over {width}: above 1 the objective saves data. †: this lies "
            "beyond the scales that were trained, so it rests on the exponent's holding there."
        )
        shown.append(Display("Data that NTP needs for the same value", cells, note))
    note = (
        "AICc of each form's fit to the means over seeds (a scale is one point; smaller is better, differences below 2 "
        "are none); a form needs three scales more than it has parameters to have one. E: those floors that a score "
        f"test over {width} does not rule out. Odds: (accuracy − chance)/(1 − accuracy) = A·x^b, so that accuracy "
        "stays between guessing and 1; for benchmarks alone."
    )
    shown.append(Display("Forms of the curves", _each(table, _forms), note))
    left = table[(table.what == "leave_out") & table.leave_out.notna()]
    if left.empty:
        reasons = list(dict.fromkeys(table[(table.what == "leave_out") & (table.form == "power")].remark))
        shown.append(Display("The largest scale predicted", pd.DataFrame({"not given": reasons})))
    else:
        note = (
            f"Signed error of the value at {tokens(left.scale.max())} caption tokens, predicted from the smaller "
            "scales; baseline: a straight line of the value in log x."
        )
        shown.append(Display("The largest scale predicted", _each(left, _left_out), note))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Log-log panels of loss and mean error: seeds, means, curves with their band, and where they would lead."""
    found = quantities(study.compared)
    losses = [key for key in ("loss_relevant", "loss_other", "loss") if key in found]
    losses = [key for key in losses if key != "loss"] or losses
    shown = {key: found[key] for key in [*losses, *(["error"] if "error" in found else [])]}
    if not shown:
        raise Missing("neither loss nor benchmark error was measured")
    archs = sorted({arch for values in shown.values() for arch in values.arch})
    figure = style.figure(max(3.4 * len(shown), 5.0), 3.2 * len(archs) + 0.7)
    drawn: set[str] = set()
    laws = [record for record in study.fits if record["kind"] == "fit" and record["form"] == "power"]
    refused = any(record["quantity"] in shown and not law(record) for record in laws)
    for column, (quantity, values) in enumerate(shown.items()):
        first: Axes | None = None
        for row, arch in enumerate(archs):
            axes = figure.add_subplot(len(archs), len(shown), row * len(shown) + column + 1, sharex=first, sharey=first)
            first = first or axes
            drawn |= _panel(axes, select(values, arch=arch), arch, quantity, study, refused)
            if row == len(archs) - 1:
                axes.set_xlabel("caption tokens")
    words = {"power": ("$A\\,x^{-b}$, band: its interval", "-"), "odds": ("power law of the odds", style.DOTTED)}
    lines = [*(words[form] for form in words if form in drawn), *([("extrapolated", style.DASHED)] if drawn else [])]
    style.legend(figure, objectives_of(list(shown.values())), lines=lines, small="one seed")
    subject = " and benchmark error" if "error" in shown else ""
    style.title(figure, f"Held-out loss{subject} against caption tokens" if losses else "Error against caption tokens")
    return figure


def _panel(axes: Axes, values: pd.DataFrame, arch: str, quantity: str, study: Study, refused: bool) -> set[str]:
    """One architecture and quantity; gives the forms that were drawn."""
    objectives = [objective for _, objective in arms(values)]
    scales = sorted(set(values.scale_tokens))
    largest, drawn, reasons = max(scales), set(), []
    # Above the panel stand a line for each objective, and two that say why there are no curves.
    head = len(objectives) + 2 * refused
    for place, objective in enumerate(objectives):
        colour, arm = style.colour(objective), select(values, objective=objective)
        # Seeds stand beside their mean, NTP's to the left: otherwise the marker hides them.
        aside = 1 + 0.09 * (place - (len(objectives) - 1) / 2)
        axes.scatter(arm.scale_tokens * aside, arm.value, s=10, color=colour, alpha=0.45, linewidth=0)
        mean = arm.groupby("scale_tokens").value.mean()
        axes.plot(mean.index, mean, linestyle="none", color=colour, marker=style.marker(objective), markersize=5)
        where = {"kind": "fit", "arch": arch, "objective": objective, "quantity": quantity}
        power, odds = (find(study.fits, **where, form=form) for form in ("power", "odds"))
        line = head - 1 - place
        if power and law(power):
            drawn.add("power")
            _curve(axes, power, scales, colour, study.settings.confidence)
            style.note(axes, line, _law_in_words(objective, power), colour)
        else:
            style.note(axes, line, f"{name(objective)}: no fit", colour)
            reasons.append(power["refused"] if power else "nothing was fitted")
        if odds and (curve := law(odds)):
            drawn.add("odds")
            x = np.geomspace(min(scales), BEYOND * largest, 90)
            axes.plot(x, curve(x), color=colour, linestyle=style.DOTTED, linewidth=1.1)
    ticks = scales
    if drawn:
        ticks = [*scales[:: 2 if len(scales) > 4 else 1], int(BEYOND * largest)]
        axes.axvspan(largest * 1.15, largest * BEYOND * 1.15, color=style.FAINT, alpha=0.5, linewidth=0, zorder=0)
        axes.set_xlim(min(scales) / 1.25, largest * BEYOND * 1.15)
        where_ = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.annotate("extrapolated", (largest * 2.15, 0.985), **where_, fontsize=7.5, color=style.MUTED)
    for line, text in enumerate(textwrap.wrap("; ".join(dict.fromkeys(reasons)), 46)[:2][::-1]):
        style.note(axes, line, text, style.MUTED)
    style.log_axes(axes, ticks, [tokens(x) for x in ticks])
    axes.set_title(f"{name(arch)}: {name(quantity)}", pad=6 + 11 * head)
    axes.set_ylabel("error (1 − accuracy)" if quantity.startswith("error") else LOSS_LABEL)
    return drawn


def _curve(axes: Axes, record: dict[str, Any], scales: list[int], colour: str, confidence: float) -> None:
    """The mean of the seeds' curves with its t interval, dashed and fainter beyond the largest scale."""
    for x, linestyle, shade in (
        (np.geomspace(min(scales) / 1.15, max(scales), 60), "-", 0.16),
        (np.geomspace(max(scales), max(scales) * BEYOND, 40), style.DASHED, 0.09),
    ):
        curves = np.log([curve(x) for curve in seed_laws(record)])
        middle = curves.mean(axis=0)
        axes.plot(x, np.exp(middle), color=colour, linestyle=linestyle, linewidth=1.2, alpha=2.5 * shade + 0.6)
        if len(curves) > 1:
            spans = [mean_interval(column, confidence) for column in curves.T]
            low, high = (np.exp([getattr(span, end) for span in spans]) for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=shade, linewidth=0)


def _law_in_words(objective: str, record: dict[str, Any]) -> str:
    """The exponent, and by how much the curve misses a mean where that is more than the fit takes for noise."""
    b, off = interval(record["exponent"]), record[DEVIATION]
    missed = f", off by up to {off:.0f} %" if off > 100 * HUBER_DELTA else ""
    return f"{name(objective)}  b = {spread(b.estimate, b.low, b.high, 3)}{missed}"


def _bounds(found: Any) -> dict[str, float]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "seeds": found.n}


def _each(table: pd.DataFrame, cells: Any) -> pd.DataFrame:
    """A row per quantity, architecture and objective; columns without a word are left out."""
    rows = []
    for (quantity, arch, objective), part in table.groupby(["quantity", "arch", "objective"], sort=False):
        found = cells(part)
        rows.append({"quantity": name(quantity), "": name(arch), "objective": name(objective)} | found)
    return _filled(rows)


def _filled(rows: list[dict[str, str]]) -> pd.DataFrame:
    made = pd.DataFrame(rows).fillna("")
    return made.drop(columns=[column for column in made if not made[column].astype(bool).any()])


def _first(part: pd.DataFrame, what: str, form: str | None = None) -> Any:
    rows = part[(part.what == what) & ((part.form == form) if form else True)]
    return next(rows.itertuples(), None)


def _side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """A row per quantity and architecture: the exponents of its objectives, and how they compare."""
    rows = []
    for (quantity, arch), part in table.groupby(["quantity", "arch"], sort=False):
        cells, compared, missed, remarks = {"quantity": name(quantity), "": name(arch)}, {}, [], []
        for objective, arm in part.groupby("objective", sort=False):
            who = name(objective)
            own, gap, both = (_first(arm, what) for what in ("exponent", "difference", "joint"))
            cells[f"b, {who}"] = spread(own.estimate, own.low, own.high, 3)
            if gap:
                compared[f"{who} minus NTP"] = spread(gap.estimate, gap.low, gap.high, 3, sign=True)
            if both:
                shared = spread(both.estimate, both.low, both.high, 3) + _probability(both.p)
                compared[f"one b for {who} and NTP"] = shared
            missed.append(number(own.deviation, 1))
            remarks += [f"{who}: {_remark(own)}"] if _remark(own) else []
        cells |= compared | {"largest deviations, %": " and ".join(filter(None, missed)), "remark": "; ".join(remarks)}
        rows.append(cells)
    return _filled(rows)


def _ratios(part: pd.DataFrame) -> dict[str, str]:
    row = next(part.itertuples())
    text = "" if math.isnan(row.estimate) else _digits(row.estimate)
    if text and not math.isnan(row.low):
        text += f" [{_digits(row.low)}, {_digits(row.high)}]"
    return {"times its data": text + (" †" if row.extrapolated == "yes" else ""), "remark": _remark(row)}


def _forms(part: pd.DataFrame) -> dict[str, str]:
    cells: dict[str, str] = {}
    for form in ("power", "odds", "power_floor"):
        if row := _first(part, "exponent", form):
            why = "too few scales" if math.isfinite(row.deviation) else "not fitted"
            cells[f"AICc, {name(form)}"] = number(row.aicc, 1) or why
        else:
            cells[f"AICc, {name(form)}"] = ""
    odds, floor, whole = (
        _first(part, "exponent", "odds"),
        _first(part, "floor"),
        _first(part, "exponent", "power_floor"),
    )
    cells["b of the odds"] = spread(odds.estimate, odds.low, odds.high, 2, bounds=True) if odds else ""
    cells["E"] = cells["remark"] = ""
    if floor and math.isfinite(floor.low):
        upper = number(floor.high, 3) or "open"
        cells["E"] = f"{number(floor.estimate, 3)} [{number(floor.low, 3)}, {upper}]"
    remarks = [floor.remark if floor else _remark(whole) if whole else ""]
    return cells | {"remark": "; ".join(dict.fromkeys(filter(None, remarks)))}


def _left_out(part: pd.DataFrame) -> dict[str, str]:
    cells = {}
    for form in ("power", "odds", "power_floor"):
        row = _first(part, "leave_out", form)
        cells[f"{name(form)}, %"] = number(row.leave_out, 1, sign=True) if row else ""
    return cells | {"baseline, %": number(part.baseline.iloc[0], 1, sign=True)}


def _digits(value: float) -> str:
    if value < 1e-3:
        return "<0.001"
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}" if value < 1e6 else ">1,000,000"


def _probability(p: float) -> str:
    return "" if math.isnan(p) else f" (p = {p:.2g})" if p >= 0.001 else " (p < 0.001)"


def _remark(row: Any) -> str:
    """A table's note says once how many seeds there are."""
    return "" if row.remark == ONE_SEED else str(row.remark)
