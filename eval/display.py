"""How tables are laid out for people: tidy numbers in, cells of text out, as Markdown or for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import pandas as pd

from eval.results import BASELINE

MINUS = "−"
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
    "odds": "power law of the odds",
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


def p_value(p: float) -> str:
    """A p with as many places as are worth reading; empty where there is none."""
    return "" if p is None or math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def tokens(count: float) -> str:
    """A token count as 40k or 1.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


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


def arm_rows(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Arms as rows: models, the same without pictures, degenerate answers, bounds."""
    order = {"with": 0, "without": 1, "": 3}
    groups = list(table.groupby(["arch", "objective", "picture"], sort=False))
    groups.sort(key=lambda item: 2 if item[0][0] == BASELINE else order[item[0][2]])
    return [((who(*key), key[0]), part) for key, part in groups]


def seeds(table: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in table.seeds if count > 0})
    if counts == [1]:
        return "1 seed (so there is no interval)"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"


def latex(shown: list[Display]) -> str:
    """The tables as LaTeX for the booktabs package, each a ``table`` with its title as caption and its note below."""
    parts = []
    for table in shown:
        header = " & ".join(_tex(str(column)) for column in table.cells.columns)
        rows = [" & ".join(map(_tex, row)) + r" \\" for row in table.cells.astype(str).to_numpy().tolist()]
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * table.cells.shape[1]}}}",
            r"\toprule",
            header + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\footnotesize {_tex(table.note)}"] if table.note else []),
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def html(shown: list[Display]) -> str:
    """The tables as a small page of HTML: Snakemake's report opens it as it is, ours reads its tables back."""
    parts = [_HEAD]
    for table in shown:
        head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table.cells.columns)
        rows = [
            f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
            for first, *rest in table.cells.astype(str).to_numpy().tolist()
        ]
        note = f"<p>{escape(table.note)}</p>" if table.note else ""
        body = "\n".join(rows)
        parts.append(
            f"<h3>{escape(table.title)}</h3>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
            f"</table>\n{note}"
        )
    return "\n".join(parts) + "\n"


_HEAD = (
    '<!doctype html><meta charset="utf-8"><style>body{font:14px/1.45 Helvetica,Arial,sans-serif;color:#222}'
    "table{border-collapse:collapse}th,td{padding:.3em 1em .3em 0;text-align:left;vertical-align:top;"
    "border-bottom:1px solid #ddd;font-weight:400}thead th{font-weight:600}p{max-width:44em;color:#555}</style>"
)
_TEX = {
    "\\": r"\textbackslash{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "ρ": r"$\rho$",
    "²": r"$^2$",
    "–": "--",
    "Σ": r"$\Sigma$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "†": r"$\dagger$",
    "○": r"$\circ$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
