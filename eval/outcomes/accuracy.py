"""The share of right answers of every arm against guessing, over seeds and questions."""

from __future__ import annotations

import pandas as pd

from eval.display import Display, number, spread, who
from eval.results import BASELINE, compared, guessing, largest, select
from eval.statistics import crossed_accuracy
from eval.study import Missing, Study


def table(study: Study) -> pd.DataFrame:
    """Share of right answers (percent) at the largest scale against guessing, for other seeds and other items.

    Columns: arch, objective, picture, benchmark, scale_tokens, value, low, high, seeds, items, chance, above_chance;
    degenerate rows come last. Every item counts for itself (MMBench: every rotation), so `chance` is one over the
    number of options. Benchmarks that have no accuracy are left out.
    """
    metrics, settings = study.metrics, study.settings
    items = compared(study.items[study.items.benchmark.isin(select(metrics, metric="accuracy").benchmark)])
    if items.empty:
        raise Missing("no benchmark with right and wrong answers was asked")
    names = ["arch", "objective", "picture", "benchmark", "value", "low", "high", "seeds", "items"]
    records = []
    groups = list(largest(items).groupby(names[:4]))
    groups += list(select(items, arch=BASELINE).groupby(names[:4]))
    for (arch, objective, picture, benchmark), part in groups:
        spread, chance = crossed_accuracy(part, settings.confidence), guessing(metrics, benchmark)
        key = {"arch": arch, "objective": objective, "picture": picture, "benchmark": benchmark}
        value = {"value": spread.estimate, "low": spread.low, "high": spread.high, "seeds": spread.n}
        count = {"items": part.item.nunique(), "chance": chance, "above_chance": spread.low > chance}
        records.append(key | {"scale_tokens": part.scale_tokens.iloc[0]} | value | count)
    return pd.DataFrame(records, columns=[*names[:4], "scale_tokens", *names[4:], "chance", "above_chance"])


def show(table: pd.DataFrame) -> list[Display]:
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
        "Right answers in percent, with an interval for other seeds and other groups of items (rotations of one "
        "question, questions about one picture), which are crossed random effects; ○ marks an interval that does not "
        "lie above guessing. Every item counts for itself, so MMBench (each rotation alone) and MME differ from the "
        "official scores above."
    )
    return [Display("Share of right answers against guessing", pd.DataFrame(rows), note)]
