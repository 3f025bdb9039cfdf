"""How tables are laid out for people: tidy numbers in, cells of text out, as Markdown or for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eval.results import BASELINE

MINUS = "−"
TESTABLE = "corrected average, testable columns only"
NAMES = {
    "hlvlm": "H-LVLM",
    "ulvlm": "U-LVLM",
    "ntp": "NTP",
    "random": "random answers",
    "always_yes": "always yes",
    "always_no": "always no",
    "always_A": "always A",
    "chance": "expected from guessing",
    "best": "highest possible",
    "loss": "loss, all tokens",
    "loss_relevant": "loss, relevant tokens",
    "loss_other": "loss, other tokens",
    "error": "benchmark error, mean",
    "power": "A·x^−b",
    "power_floor": "E + A·x^−b",
}


@dataclass(frozen=True)
class Display:
    """One table as people see it: a title, text cells under their headings, and what one must know to read it."""

    title: str
    cells: pd.DataFrame
    note: str = ""


def name(key: str) -> str:
    """The name people know for a key of the tables."""
    if key.startswith("error:"):
        return f"error, {key.removeprefix('error:')}"
    return NAMES.get(key, key.replace("prior", "PRIOR", 1) if key.startswith("prior") else key)


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number as text with a true minus sign; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def spread(value: float, low: float, high: float, digits: int, sign: bool = False, bounds: bool = False) -> str:
    """``value ± half-width``, or ``value [low, high]`` where the interval is lopsided; the bare value without one."""
    text = number(value, digits, sign)
    if not text or not math.isfinite(low):
        return text
    if bounds:
        return f"{text} [{number(low, digits, sign)}, {number(high, digits, sign)}]"
    return f"{text} ± {number((high - low) / 2, digits)}"


def tokens(count: float) -> str:
    """A token count as 40k or 1.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def main(table: pd.DataFrame) -> list[Display]:
    """Scores, averages with gains, and how the models answer."""
    if table.empty:
        return []
    reported = bool((table.kind == "paper").any())
    seeds = _seeds(table[table.arch != BASELINE])
    scale = tokens(table.scale_tokens.max())
    scored = table[table.kind.isin(["score", "bound"])]
    columns = list(dict.fromkeys(scored.quantity))
    rows = []
    for (label, _), part in _rows(scored):
        cells = {row.quantity: spread(row.value, row.low, row.high, 1) for row in part.itertuples()}
        rows.append({"": label} | {column: cells.get(column, "") for column in columns})
    for arch, part in table[table.kind == "testable"].groupby("arch", sort=False):
        verdict = {row.quantity: "testable" if row.value else "not testable" for row in part.itertuples()}
        rows.append({"": f"{name(str(arch))}: testable?"} | {column: verdict.get(column, "") for column in columns})
    shown = [
        Display(
            f"Benchmark scores at the largest scale ({scale} caption tokens)",
            pd.DataFrame(rows),
            f"Mean over {seeds} ± half the width of its t interval. MME in points, the others in percent. "
            "A benchmark is testable where NTP's interval lies above what is expected from guessing, above constant "
            "answers, and above the same model without its picture. Expected from guessing: a fair coin for yes/no, "
            "otherwise one over the number of options. That holds for MMBench too, where all rotations of a question "
            "must be right: consistent guessing, an option's text picked blindly and kept through the rotations, gets "
            "as much; the random answers guess each rotation anew.",
        ),
        Display(
            "Averages and improvement over NTP",
            _averages(table),
            f"Raw average: {table[table.quantity == 'raw'].unit.iloc[0]}, as the paper plots it (points and percent "
            "alike, so MME dominates). Corrected average: each score rescaled so that guessing gives 0 and perfection "
            "1, then averaged; beside it the same over the columns alone that are testable for the architecture. "
            "Relative improvement: ratio of raw averages minus one, paired by seed, with Fieller's interval. "
            + ("The paper's column is its abstract's average, from much larger models and data." if reported else ""),
        ),
    ]
    if (table.kind == "answers").any():
        note = "Percent. A model that says yes to everything has a yes-rate of 100; an unparsed answer counts as wrong."
        shown.append(Display("How the models answer", _answers(table), note))
    reasons = table[(table.kind == "testable") & (table.value == 0)]
    if len(reasons):
        why = [{"": f"{name(row.arch)}, {row.quantity}", "why": row.note} for row in reasons.itertuples()]
        shown.append(Display("Benchmarks that cannot tell models apart at this scale", pd.DataFrame(why)))
    return shown


def losses(table: pd.DataFrame) -> list[Display]:
    """Held-out loss with its picture, and what the picture is worth."""
    shown = []
    for picture, part in table.groupby("picture", sort=True):
        kinds = [kind for kind in ("relevant", "other", "all") if kind in set(part.tokens)]
        rows = []
        for (arch, scale, objective), arm in part.groupby(["arch", "scale_tokens", "objective"], sort=False):
            row = {"": name(str(arch)), "caption tokens": tokens(float(scale)), "objective": name(str(objective))}
            by = {entry.tokens: entry for entry in arm.itertuples()}
            row |= {f"{kind} tokens": spread(by[kind].value, by[kind].low, by[kind].high, 3) for kind in kinds}
            for kind in kinds:
                gain = spread(by[kind].gain, by[kind].gain_low, by[kind].gain_high, 3, sign=True)
                row[f"{kind}: minus NTP"] = gain
            rows.append((arch, scale, row))
        rows.sort(key=lambda entry: entry[:2])
        note = (
            f"nats per token, mean over {_seeds(part)} ± half the width of its t interval; differences paired by seed."
        )
        if picture == "without":
            note += " The same models, asked without the picture: what is lost is what the picture told them."
        shown.append(
            Display(f"Held-out caption loss, {picture} the picture", pd.DataFrame([row for *_, row in rows]), note)
        )
    return shown


def accuracy(table: pd.DataFrame) -> list[Display]:
    """Accuracy with and without the picture beside what guessing gives."""
    rows = []
    for (arch, objective, benchmark), part in table.groupby(["arch", "objective", "benchmark"], sort=False):
        by = {row.picture: row for row in part.itertuples()}
        asked = next(iter(by.values()))
        cells = {"": who(str(arch), str(objective), "with"), "benchmark": str(benchmark)}
        for picture in ("with", "without"):
            row = by.get(picture)
            text = spread(row.value, row.low, row.high, 1, bounds=True) if row else ""
            cells[f"{picture} picture, %"] = text + ("" if row is None or row.above_chance else " ○")
        rows.append(cells | {"guessing, %": number(asked.chance, 1), "items": str(asked.items)})
    note = (
        "Right answers in percent, interval by bootstrap over seeds and groups of items (rotations of one question, "
        "questions about one picture); ○ marks an interval that does not lie above guessing. Every item counts for "
        "itself, so MMBench (each rotation alone) and MME differ from the official scores above."
    )
    return [Display("Share of right answers against guessing", pd.DataFrame(rows), note)] if rows else []


def fits(table: pd.DataFrame) -> list[Display]:
    """Exponents and their differences, one table per form."""
    shown = []
    for form, part in table.groupby("form", sort=False):
        rows = []
        place = {quantity: index for index, quantity in enumerate(dict.fromkeys(part.quantity))}
        for row in sorted(part.itertuples(), key=lambda row: (place[row.quantity], row.arch)):
            label = name(row.objective) if row.kind == "fit" else f"{name(row.objective)} minus NTP"
            exponent = spread(row.estimate, row.low, row.high, 3, sign=row.kind == "difference")
            cells = {"": name(row.arch), "quantity": name(row.quantity), "objective": label, "exponent b": exponent}
            cells |= {"A": f"{row.A:.3g}" if math.isfinite(row.A) else ""}
            cells |= {"E": number(row.E, 3) if form == "power_floor" else ""}
            cells |= {"largest deviation, %": number(row.largest_deviation_percent, 1)}
            rows.append(cells | {"remark": row.refused})
        cells = pd.DataFrame(rows)
        if not cells["exponent b"].any() and cells.remark.nunique() <= 2:
            # Where nothing could be fitted one sentence says more than a table of blanks.
            reason = table[(table.form == form) & (table.kind == "fit")].refused.iloc[0]
            cells = pd.DataFrame({"not fitted": [reason]})
        note = (
            "x: caption tokens. Exponents: mean over seeds of one fit each ± half the width of their t interval; A and "
            "E from the fit to the seeds' mean. A larger b falls faster. Error is 1 − accuracy. Largest deviation: by "
            "how much that fit misses the seeds' mean at the worst scale; where this is not small beside the change "
            "over the scales, the curve is no power law and b says little."
        )
        blank = [column for column in cells if not cells[column].astype(bool).any()]
        shown.append(Display(f"Power laws {name(str(form))}", cells.drop(columns=blank), note))
    return shown


def markdown(shown: list[Display]) -> str:
    """The tables as GitHub Markdown."""
    parts = []
    for table in shown:
        header = [str(column) for column in table.cells.columns]
        rows = [header, ["---"] * len(header), *table.cells.astype(str).to_numpy().tolist()]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts.append("\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])]))
    return "\n\n".join(parts) + "\n"


def who(arch: str, objective: str, picture: str) -> str:
    """The label of an arm's row."""
    if arch in (BASELINE, "bound"):
        return name(objective)
    return f"{name(arch)} {name(objective)}" + (", without picture" if picture == "without" else "")


def _rows(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Arms as rows: models, the same without pictures, degenerate answers, bounds."""
    order = {"with": 0, "without": 1, "": 3}
    groups = list(table.groupby(["arch", "objective", "picture"], sort=False))
    groups.sort(key=lambda item: 2 if item[0][0] == BASELINE else order[item[0][2]])
    return [((who(*key), key[0]), part) for key, part in groups]


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    paper = {row.arch: row.value for row in table[table.kind == "paper"].itertuples()}
    rows = []
    for (label, arch), part in _rows(table[table.kind.isin(["average", "gain"])]):
        cells: dict[str, Any] = {"": label, "raw average": "", "corrected average": "", TESTABLE: ""}
        cells |= {"relative improvement, %": "", "corrected, minus NTP": "", "paper: improvement, %": ""}
        for row in part.itertuples():
            if (row.kind, row.quantity) == ("average", "raw"):
                cells["raw average"] = spread(row.value, row.low, row.high, 1)
            elif (row.kind, row.quantity) == ("average", "corrected"):
                cells["corrected average"] = spread(row.value, row.low, row.high, 3)
            elif row.quantity == "corrected_testable":
                cells[TESTABLE] = spread(row.value, row.low, row.high, 3)
            elif row.quantity == "relative":
                cells["relative improvement, %"] = spread(row.value, row.low, row.high, 1, sign=True, bounds=True)
            else:
                cells["corrected, minus NTP"] = spread(row.value, row.low, row.high, 3, sign=True)
            if row.objective == "prior" and row.picture == "with":
                cells["paper: improvement, %"] = number(paper.get(arch, float("nan")), 0, sign=True)
        rows.append(cells)
    shown = pd.DataFrame(rows)
    return shown[[column for column in shown if shown[column].astype(bool).any()]]


def _answers(table: pd.DataFrame) -> pd.DataFrame:
    answers = table[table.kind == "answers"]
    columns = sorted(set(answers.quantity), key=lambda quantity: (not quantity.startswith("yes"), quantity))
    rows = []
    for (label, _), part in _rows(answers):
        cells = {row.quantity: spread(row.value, row.low, row.high, 1) for row in part.itertuples()}
        heads = {column: column.replace("yes_rate:", "yes-rate ").replace(":", " ") for column in columns}
        rows.append({"": label} | {heads[column]: cells.get(column, "") for column in columns})
    return pd.DataFrame(rows)


def _seeds(table: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in table.seeds if count > 0})
    if counts == [1]:
        return "1 seed (so there is no interval)"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"
