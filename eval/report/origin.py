"""Where a number comes from: the runs of its arm, their commit and settings, and the files and code in between."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from eval.display import tokens, who
from eval.results import BASELINE, RUN, arms
from eval.study import Study
from prior.config import Preset, digest, parse_tokens
from prior.errors import UserError

# Told apart on the page by its place, not as a difference between runs.
OWN = ("arch", "objective", "scale", "seed", "stage")


@dataclass(frozen=True)
class Stage:
    """The runs of an arm in one stage: what all of them share, and a row for each with what they do not."""

    name: str
    digests: tuple[str, ...]
    shared: list[tuple[str, str]]
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Arm:
    """An architecture under an objective: `seeds` of each of its scales (in tokens), and its stages."""

    arch: str
    objective: str
    seeds: Mapping[int, tuple[int, ...]]
    commits: tuple[str, ...]
    stages: tuple[Stage, ...] = ()

    @property
    def key(self) -> str:
        return re.sub(r"[^\w.-]", "_", f"{self.arch}-{self.objective}")

    @property
    def label(self) -> str:
        return who(self.arch, self.objective, "with")

    def runs(self, scales: Iterable[int] | None = None) -> int:
        """How many runs it has at these scales, or at all."""
        return sum(len(self.seeds[scale]) for scale in (self.seeds if scales is None else scales))

    def says(self, scales: Iterable[int] | None = None) -> str:
        """Its runs at these scales in one line, with their commits and digests of their settings."""
        chosen = list(self.seeds if scales is None else scales)
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for scale in chosen:
            by_seeds.setdefault(self.seeds[scale], []).append(tokens(scale))
        paths = [
            f"runs/{self.arch}/{self.objective}/{braces(names)}/seed{ranges(seeds)}"
            for seeds, names in by_seeds.items()
        ]
        count = self.runs(chosen)
        parts = [f"{count} run{'' if count == 1 else 's'}: {', '.join(paths)}"]
        if self.commits:
            parts.append(f"commit {', '.join(self.commits)}")
        if any(stage.digests for stage in self.stages):
            parts.append("settings " + ", ".join(f"{stage.name} {'/'.join(stage.digests)}" for stage in self.stages))
        return "; ".join(parts)


@dataclass(frozen=True)
class Origins:
    """All arms of a study, what every run of a stage shares, and how many runs left no ``run.yaml``."""

    arms: dict[tuple[str, str], Arm]
    shared: dict[str, list[tuple[str, str]]]
    unknown: int
    commits: tuple[str, ...]
    versions: dict[str, str]

    @property
    def runs(self) -> int:
        return sum(arm.runs() for arm in self.arms.values())

    @property
    def dirty(self) -> bool:
        """Whether a run was made with changes that were not committed."""
        return any(commit.endswith("-dirty") for commit in self.commits)

    def behind(self, table: pd.DataFrame) -> dict[tuple[str, str], list[int]]:
        """The arms, with their scales, whose numbers stand in a result's tidy table; none if it names no arm."""
        if not {"arch", "objective"} <= set(table.columns):
            return {}
        found: dict[tuple[str, str], list[int]] = {}
        for key, rows in table.groupby(["arch", "objective"], sort=False):
            arm = self.arms.get((str(key[0]), str(key[1])))
            if arm is None:
                continue
            named = set(rows.scale_tokens.dropna().astype(int)) if "scale_tokens" in rows else set()
            found[arm.arch, arm.objective] = [scale for scale in arm.seeds if scale in named] or list(arm.seeds)
        return {key: found[key] for key in self.arms if key in found}

    def named(self, runs: str) -> list[tuple[Arm, str]]:
        """The arms that a claim names (`eval.claims.evidence.Runs.says`), each with what to say of its runs."""
        who_, _, where = runs.partition("; ")
        archs, _, objectives = who_.partition(": ")
        keys = [(arch, objective) for arch in archs.split(", ") for objective in objectives.split(", ")]
        found = [self.arms[key] for key in keys if key in self.arms]
        return [
            (arm, arm.says([scale for scale in arm.seeds if tokens(scale) in where.split(", ")] or None))
            for arm in found
        ]


def gather(results: Path, preset: Preset) -> dict[str, Any]:
    """Every ``run.yaml`` of a preset's runs, by ``runs/{run}/{stage}``: the content of ``provenance.yaml``.

    Raises
    ------
    UserError
        If one of them is missing.
    """
    found = {}
    for name in (f"runs/{run}/{stage}" for run in preset.runs() for stage in preset.stages):
        path = results / name / "run.yaml"
        if not path.is_file():
            raise UserError(f"{path}: no such file; run this stage first")
        found[name] = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def origins(study: Study) -> Origins:
    """Group the runs that the study's numbers come from by arm, with differences only."""
    models = study.metrics[study.metrics.arch != BASELINE]
    runs = models[RUN].drop_duplicates().sort_values(RUN)
    entries: dict[tuple[str, str], list[dict[str, Any]]] = {}
    known = set()
    for entry in study.provenance.values():
        key = entry["arch"], entry["objective"]
        entries.setdefault(key, []).append(entry)
        known.add((*key, parse_tokens(entry["scale"]), int(entry["seed"])))
    flat = {id(entry): dict(flatten({k: v for k, v in entry.items() if k not in OWN})) for entry in _all(entries)}
    stages = list(dict.fromkeys(str(entry["stage"]) for entry in _all(entries)))
    shared = {
        stage: _shared([flat[id(entry)] for entry in _all(entries) if entry["stage"] == stage]) for stage in stages
    }
    found = {}
    for key in arms(models):
        own = runs[(runs.arch == key[0]) & (runs.objective == key[1])]
        seeds = {int(scale): tuple(int(seed) for seed in part.seed) for scale, part in own.groupby("scale_tokens")}
        mine = entries.get(key, [])
        parts = (_stage(stage, [e for e in mine if e["stage"] == stage], flat, shared[stage]) for stage in stages)
        found[key] = Arm(*key, seeds, commits(mine), tuple(part for part in parts if part.rows))
    numbers = set(runs.itertuples(index=False, name=None))
    versions: dict[str, list[str]] = {}
    for entry in _all(entries):
        for package, version in entry.get("versions", {}).items():
            if str(version) not in versions.setdefault(package, []):
                versions[package].append(str(version))
    return Origins(
        arms=found,
        shared={stage: list(fields.items()) for stage, fields in shared.items()},
        unknown=len(numbers - known),
        commits=commits(list(_all(entries))),
        versions={package: ", ".join(values) for package, values in versions.items()},
    )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return rows


def commits(entries: list[dict[str, Any]]) -> tuple[str, ...]:
    """The commits at which runs were made, each once."""
    return tuple(dict.fromkeys(str(entry["commit"]) for entry in entries if entry.get("commit")))


def ranges(numbers: Iterable[int]) -> str:
    """``0–3,5`` for 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def braces(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"


def _all(entries: Mapping[Any, list[dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    return (entry for part in entries.values() for entry in part)


def _shared(fields: list[dict[str, str]]) -> dict[str, str]:
    """Those fields that all have and that are the same in all."""
    first, *rest = fields
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _stage(name: str, mine: list[dict[str, Any]], flat: dict[int, dict[str, str]], common: dict[str, str]) -> Stage:
    if not mine:
        return Stage(name, (), [], [], [])
    fields = [flat[id(entry)] for entry in mine]
    shared = _shared(fields)
    columns = [key for key in dict.fromkeys(key for row in fields for key in row) if key not in shared]
    rows = [
        (f"{entry['arch']}/{entry['objective']}/{entry['scale']}/seed{entry['seed']}/{name}", row)
        for entry, row in zip(mine, fields, strict=True)
    ]
    digests = [hashlib.sha256(digest(entry["settings"]).encode()).hexdigest()[:8] for entry in mine]
    return Stage(
        name=name,
        digests=tuple(dict.fromkeys(digests)),
        shared=[(key, value) for key, value in shared.items() if key not in common],
        columns=columns,
        rows=[(run, [row.get(key, "–") for key in columns]) for run, row in rows],
    )
