"""One page per preset, complete in itself: what was run, what came of it, and where each number comes from."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eval.display import name, number, p_value, tokens
from eval.outcomes import FIGURE_ENDINGS, OUTCOMES, TABLE_ENDINGS
from eval.report.cells import Table, read_tables
from eval.report.origin import Arm, Origins, flatten, origins, ranges
from eval.report.prose import CAPTIONS, caption, split
from eval.study import Study
from prior.config import Preset
from prior.errors import UserError
from prior.files import write_text

PACKAGE = Path(__file__).resolve().parent.parent
TEMPLATES = PACKAGE / "templates"
CLAIMS = ["claim", "statistic", "paper", "value", "low", "high", "n", "p", "verdict"]
# Verdicts with a mark each, so that none is told by its colour alone.
VERDICTS = {"shown": "✓", "not shown": "○", "contradicted": "✕", "not testable": "–"}
# Longer tables are folded.
LONG = 14
# What a preset's summary says of its corpus, where it has it.
CORPUS = ("kind", "source", "folder", "train", "val", "text_only", "image_size")


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and the arm it leads to with what to say about its runs."""

    text: str
    arm: str = ""
    says: str = ""


@dataclass(frozen=True)
class Result:
    """A result as it stands on the page; `missing` says why there is nothing else."""

    key: str
    title: str
    category: str
    caption: tuple[str, str]
    missing: str
    picture: str
    tables: list[tuple[Table, list[list[Cell]]]]
    files: list[tuple[str, str]]
    runs: list[tuple[str, str, str]]
    count: int
    read: tuple[str, ...]
    code: str


def write_report(
    study: Study, preset: Preset, results: Path, path: str | Path, captions: Path = CAPTIONS, viewer: bool = False
) -> None:
    """Write ``report.html`` from a study and the tables, figures and claims in the folder `results`.

    The same files give the same bytes; nothing is loaded from elsewhere.

    Raises
    ------
    UserError
        If a table, a figure or the claims are missing.
    """
    write_text(path, render(study, preset, results, captions, viewer))


def render(study: Study, preset: Preset, results: Path, captions: Path = CAPTIONS, viewer: bool = False) -> str:
    """The page as HTML; `viewer` says whether it leads to a ``viewer.html`` beside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = lambda text: Markup(text)
    known = origins(study)
    categories: dict[str, list[Result]] = {}
    for key in OUTCOMES:
        result = _result(key, known, study.alphas, results, captions)
        categories.setdefault(result.category, []).append(result)
    claims = _claims(results / "claims.csv", known)
    return environment.get_template("report.html.j2").render(
        preset=preset.name,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        facts=_facts(preset, known, study),
        claims=claims,
        verdicts={verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS},
        claims_caption=caption("claims", captions),
        categories=categories,
        origins=known,
        settings=flatten(preset.model_dump(mode="json")),
        confidence=f"{100 * study.settings.confidence:g}",
        viewer=viewer,
        marks=VERDICTS,
        long=LONG,
        ranges=ranges,
        tokens=tokens,
    )


def _result(key: str, known: Origins, alphas: Mapping[str, float], results: Path, captions: Path) -> Result:
    heading = OUTCOMES[key]
    table = _table(results / f"tables/{key}.csv")
    behind = known.behind(table)
    missing = str(table.missing.iloc[0]) if "missing" in table and len(table) else ""
    fragment = _need(results / f"tables/{key}.html").read_text(encoding="utf-8")
    picture = ""
    if heading.figure and not missing:
        picture = base64.b64encode(_need(results / f"figures/{key}.png").read_bytes()).decode()
    files = [(f"tables/{key}.{ending}", ending) for ending in TABLE_ENDINGS]
    files += [(f"figures/{key}.{ending}", ending) for ending in FIGURE_ENDINGS] if heading.figure else []
    chosen = [(known.arms[arm], scales) for arm, scales in behind.items()]
    return Result(
        key=key,
        title=heading.title,
        category=heading.category,
        caption=split(caption(key, captions)),
        missing=missing.removeprefix(f"{heading.title}: "),
        picture=picture,
        tables=[] if missing else [(part, list(_cells(part, known, behind, alphas))) for part in read_tables(fragment)],
        files=files,
        runs=[(arm.key, arm.label, arm.says(scales)) for arm, scales in chosen],
        count=sum(arm.runs(scales) for arm, scales in chosen),
        read=heading.read,
        code=f"eval/outcomes/{key}.py",
    )


def _cells(
    table: Table, known: Origins, behind: dict[tuple[str, str], list[int]], alphas: Mapping[str, float]
) -> Iterator[list[Cell]]:
    """The rows of a table, where cells that belong to an arm lead to the runs behind them."""
    scales = {tokens(scale): scale for arm in known.arms.values() for scale in arm.seeds}
    for row in table.rows:
        cells = [Cell(text) for text in row]
        for place, arm in _arms(row, table.columns, known, alphas):
            own = behind.get((arm.arch, arm.objective), list(arm.seeds))
            named = [scales[text] for text in row if text in scales and scales[text] in arm.seeds]
            cells[place] = Cell(row[place], arm.key, arm.says(named or own))
        yield cells


def _arms(row: list[str], columns: list[str], known: Origins, alphas: Mapping[str, float]) -> Iterator[tuple[int, Arm]]:
    """The arms that a row is about, and the cells that lead to them.

    A row is of one arm that is named in one cell, by its objective beside its LVLM or by its α, or of several of one
    LVLM whose objectives stand above its cells.
    """
    for arm in known.arms.values():
        if row and row[0].removesuffix(", without picture") == arm.label:
            yield 0, arm
            return
    for arm in known.arms.values():
        if name(arm.arch) in row and name(arm.objective) in row:
            yield row.index(name(arm.objective)), arm
            return
    for arm in known.arms.values():
        for place, (text, column) in enumerate(zip(row, columns, strict=True)):
            alpha = alphas.get(arm.objective)
            of_alpha = column == "α" and alpha is not None and text.split(" ")[0] == f"{alpha:g}"
            if row[0] == name(arm.arch) and text and (of_alpha or column == name(arm.objective)):
                yield place, arm


def _claims(path: Path, known: Origins) -> list[dict[str, Any]]:
    """The rows of ``claims.csv`` with their numbers as text, and the arms that they are of."""
    # What the paper says is a figure for some and words for others.
    table = _table(path, dtype={"paper": str})
    if lacking := [column for column in CLAIMS if column not in table]:
        raise UserError(f"{path.name}: lacks the column {', '.join(lacking)}; write it again with this version")
    rows = []
    for row in table.to_dict("records"):
        # That a claim is not testable is said with its reason.
        verdict = next((known for known in VERDICTS if str(row["verdict"]).startswith(known)), "")
        if not verdict:
            raise UserError(f"{path.name}: '{row['verdict']}' is no verdict; write it again with this version")
        digits = _digits(row["value"], row["low"], row["high"])
        value, low, high = (_figure(row[column], digits) for column in ("value", "low", "high"))
        rows.append(
            {
                "claim": str(row["claim"]),
                "statistic": _text(row["statistic"]),
                "paper": _text(row["paper"]),
                "value": value,
                "interval": f"[{low}, {high}]" if low and high else "",
                "n": _figure(row["n"]),
                "p": p_value(row["p"]),
                "holm": p_value(row["p_holm"]) if "p_holm" in table else "",
                "verdict": verdict,
                "why": _text(row["why"]) if "why" in table else "",
                "source": _text(row["source"]) if "source" in table else "",
                "arms": known.named(_text(row["runs"])) if "runs" in table else [],
            }
        )
    return rows


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _digits(*values: Any) -> int:
    """Decimals that leave the largest of these numbers three digits that count."""
    known = [abs(value) for value in values if isinstance(value, int | float) and math.isfinite(value) and value != 0]
    return max(0, 2 - math.floor(math.log10(max(known)))) if known else 0


def _figure(value: Any, digits: int | None = None) -> str:
    """A number with three digits that count, or with this many decimals; text as it is; nothing where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    whole = float(value).is_integer() and digits is None
    return number(value, 0 if whole else _digits(value) if digits is None else digits)


def _facts(preset: Preset, known: Origins, study: Study) -> list[tuple[str, str]]:
    """What was run on what, as (name, sentence)."""
    corpus = preset.corpus.model_dump(mode="json")
    seen = [f"{key.replace('_', ' ')} {corpus[key]}" for key in CORPUS[1:] if corpus.get(key) is not None]
    grids: dict[tuple[int, ...], list[Arm]] = {}
    for arm in known.arms.values():
        grids.setdefault(tuple(arm.seeds), []).append(arm)
    lines = []
    for scales, arms in sorted(grids.items(), key=lambda grid: -len(grid[0])):
        archs, objectives = (list(dict.fromkeys(getattr(arm, key) for arm in arms)) for key in ("arch", "objective"))
        seeds = sorted({seed for arm in arms for own in arm.seeds.values() for seed in own})
        product = [
            _count(len(archs), "architecture") + f" ({', '.join(map(name, archs))})",
            _count(len(objectives), "objective") + f" ({', '.join(map(name, objectives))})",
            _count(len(scales), "data scale") + f" ({', '.join(map(tokens, scales))} caption tokens)",
            _count(len(seeds), "seed"),
        ]
        lines.append(f"{' × '.join(product)} = {_count(sum(arm.runs() for arm in arms), 'run')}")
    asked = [key for key in dict.fromkeys(study.metrics.benchmark) if key != "heldout"]
    facts = [("Corpus", f"{corpus['kind']}: {', '.join(seen)}"), *(("Runs", line) for line in lines)]
    facts.append(("Benchmarks", ", ".join(asked) or "none"))
    facts.append(("Commit", ", ".join(known.commits) or "not stored"))
    if known.versions:
        chosen = [
            f"{key} {known.versions[key]}" for key in ("python", "torch", "transformers") if key in known.versions
        ]
        facts.append(("Made with", ", ".join(chosen or [f"{k} {v}" for k, v in known.versions.items()])))
    return facts


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(path: Path, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(_need(path), **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise UserError(f"{path}: not a CSV table; delete it and make the results again") from None


def _need(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; make the tables, figures and claims first")
    return path
