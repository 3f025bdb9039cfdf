"""One page per preset, complete in itself: what was run, what came out, how to read it, where it comes from."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from eval.display import Display, name, spread
from eval.results import Paper
from eval.tables import all_tables
from prior.config import Statistics
from prior.files import write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"
CAPTIONS = {
    "scaling": "Held-out loss on tokens the picture decides and on the others, and the mean benchmark error, against "
    "the caption tokens seen in pre-training. Large markers: mean over seeds; small ones: single seeds; "
    "lines: fitted power laws; b: exponent over seeds.",
    "scaling_benchmarks": "The error of each benchmark (1 − accuracy) against caption tokens.",
    "trajectory": "Through training at the largest scale: mean over seeds with its interval. The grey-titled panel is "
    "the paper's own trajectory, read off the authors' README picture by colour (about ±1).",
    "losses": "Held-out loss at the largest scale, mean over seeds with its interval. Hollow: the same model asked "
    "without the picture. Numbers: PRIOR minus NTP with the picture, paired by seed.",
    "benchmarks": "Scores at the largest scale. A model is only worth more than its degenerate rows where it stands to "
    "the right of them: what is expected from guessing, constant answers, and itself without the picture.",
    "hallucination": "Free captions of held-out pictures, cut to equal length: the share of mentioned objects that are "
    "not in the picture (CHAIR_i, lower is better), and the share of the picture's objects that are mentioned (recall, "
    "higher is better). Mean over seeds with its interval.",
    "scores": "What the text-only reference LLM makes of caption tokens. PRIOR weighs a token by (1 − p_r)^α, so "
    "tokens on the left gain weight, whether the picture decides them or not.",
}
ALT = {
    "scaling": "Loss and error against data scale",
    "scaling_benchmarks": "Benchmark errors against data scale",
    "trajectory": "Loss against training step, and the paper's trajectory",
    "losses": "Loss on relevant and other tokens",
    "benchmarks": "Benchmark scores and degenerate answers",
    "hallucination": "Made-up and found objects in captions against data scale",
    "scores": "Distribution of reference probabilities",
}


@dataclass(frozen=True)
class About:
    """What the page says about the run: its preset (nested settings), package versions, commits, and origins."""

    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commits: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()


def findings(tables: Mapping[str, pd.DataFrame], fits: list[dict[str, Any]]) -> list[str]:
    """What the numbers say, one sentence each; a difference counts only where its interval excludes zero."""
    said: list[str] = []
    main, losses = tables.get("main", pd.DataFrame()), tables.get("losses", pd.DataFrame())
    if len(main):
        told = {row.arch: row.value for row in main[main.kind == "paper"].itertuples()}
        gains = main[(main.kind == "gain") & (main.quantity == "relative") & (main.picture == "with")]
        for row in gains.itertuples():
            text = spread(row.value, row.low, row.high, 1, sign=True, bounds=True)
            paper = (
                f"; the paper reports {told[row.arch]:+.0f} %" if row.objective == "prior" and row.arch in told else ""
            )
            verdict = _verdict(row.low, row.high, "above", "below")
            who = f"{name(row.arch)}: {name(row.objective)}'s raw average"
            said.append(f"{who} is {verdict} NTP's ({text} %{paper}).")
        for arch, rows in main[main.kind == "testable"].groupby("arch"):
            passed = [row.quantity for row in rows.itertuples() if row.value]
            which = f" ({', '.join(passed)})" if passed else ""
            said.append(f"{name(str(arch))}: {len(passed)} of {len(rows)} benchmark columns are testable{which}.")
    if len(losses):
        last = losses[(losses.scale_tokens == losses.scale_tokens.max()) & (losses.picture == "with")]
        for row in last[last.gain.notna()].itertuples():
            text = spread(row.gain, row.gain_low, row.gain_high, 3, sign=True)
            verdict = _verdict(row.gain_low, row.gain_high, "higher than", "lower than")
            who = f"{name(row.arch)}: {name(row.objective)}'s loss on {row.tokens} tokens"
            said.append(f"{who} is {verdict} NTP's ({text} nats/token).")
    captions = tables.get("hallucination", pd.DataFrame())
    if len(captions):
        seen = captions[(captions.metric == "chair_i_equal") & (captions.picture == "with")]
        for row in seen[seen.gain.notna()].itertuples():
            text = spread(row.gain, row.gain_low, row.gain_high, 1, sign=True)
            verdict = _verdict(row.gain_low, row.gain_high, "higher than", "lower than")
            who = f"{name(row.arch)}: {name(row.objective)}'s share of made-up objects in captions of equal length"
            said.append(f"{who} is {verdict} NTP's ({text} points).")
    for fit in fits:
        if fit["kind"] == "difference" and fit["form"] == "power" and fit["quantity"] in ("loss_relevant", "error"):
            gap = fit["exponent"]
            if gap["low"] is not None:
                verdict = _verdict(gap["low"], gap["high"], "steeper than", "flatter than")
                text = spread(gap["estimate"], gap["low"], gap["high"], 3, sign=True)
                who = f"{name(fit['arch'])}: {name(fit['objective'])}'s power law of {name(fit['quantity'])}"
                said.append(f"{who} is {verdict} NTP's (exponent {text}).")
    return said


def render(
    about: About, shown: Mapping[str, list[Display]], said: list[str], figures: Mapping[str, bytes], confidence: float
) -> str:
    """The page as HTML. `figures` holds PNG bytes by name; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        {"alt": ALT.get(key, key), "caption": CAPTIONS.get(key, ""), "data": base64.b64encode(data).decode()}
        for key, data in figures.items()
    ]
    return environment.get_template("report.html.j2").render(
        about=about,
        findings=said,
        sections={key: tables for key, tables in shown.items() if tables},
        figures=pictures,
        settings=flatten(about.settings),
        confidence=f"{100 * confidence:g}",
    )


def write_report(
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    fits: list[dict[str, Any]],
    settings: Statistics,
    paper: Paper,
    figures: str | Path,
    path: str | Path,
    about: About,
    words: pd.DataFrame | None = None,
    quality: dict[str, Any] | None = None,
    asked: pd.DataFrame | None = None,
) -> None:
    """Write ``report.html`` from the tables' numbers and the PNG files in the folder `figures`."""
    tables = all_tables(metrics, items, fits, settings, paper, words, quality, asked)
    found = {key: Path(figures) / f"{key}.png" for key in CAPTIONS}
    images = {key: place.read_bytes() for key, place in found.items() if place.is_file()}
    said = findings({key: table for key, (table, _) in tables.items()}, fits)
    shown = {key: display for key, (_, display) in tables.items()}
    write_text(path, render(about, shown, said, images, settings.confidence))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            text = (
                ", ".join(map(str, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)
            )
            rows.append((f"{prefix}{key}", text))
    return rows


def _verdict(low: float, high: float, above: str, below: str) -> str:
    """Which side of zero an interval lies on, if it lies on one."""
    if low > 0:
        return above
    if high < 0:
        return below
    return "not distinguishable from" if low <= 0 <= high else "without an interval, so not comparable with"
