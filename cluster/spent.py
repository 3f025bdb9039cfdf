"""``python -m cluster.spent``: what a preset has cost once it is done: tokens, FLOPs, time, memory of each stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import typer

from cluster.plan.assumptions import Assumptions
from cluster.plan.jobs import Task, tasks_of
from cluster.plan.work import Cell, Work
from prior.config import LLM, Preset, Tokenizer, parse_tokens, shard_names
from prior.console import Folder, PresetName, checked_preset, run
from prior.errors import UserError
from prior.files import whole
from prior.tokens import read_table, shard_files

COLUMNS = [
    *("stage", "arch", "objective", "scale_tokens", "jobs", "runs", "gpus", "tokens", "positions", "flops"),
    *("seconds", "cpu_seconds", "max_rss_mb", "remark"),
]
# Jobs whose time Snakemake takes; the others fetch, count or draw.
STAGES = {
    **{rule: rule for rule in ("corpus", "tokenizer", "tokens", "llm", "vision", "reference", "scores")},
    **{rule: rule for rule in ("heldout_scores", "pretrain", "tune", "predict", "predict_step")},
    **dict.fromkeys(("score", "score_degenerate", "score_captions"), "score"),
}
CELLS = ("pretrain", "tune", "predict", "predict_step")
# By the name of its stage, where what a stage has trained keeps its log.
LOGS = {"llm": "backbones/llm", "vision": "backbones/vision", "reference": "reference"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def write(preset: PresetName, results: Folder, out: Folder) -> None:
    """Write costs.csv from the tokens, logs and timings of a preset's results."""
    table = spent(checked_preset(preset), results)
    with whole(out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def spent(preset: Preset, results: Path) -> pd.DataFrame:
    """What every stage has cost; trainings and answers by architecture, objective and scale.

    Columns
    -------
    jobs, runs, gpus
        Jobs of the workflow; trainings of LVLMs that they are about; GPUs of one job.
    tokens, positions
        Label tokens trained on or scored, as the logs count them; positions of an LLM that computed these, pictures
        included. Empty where nothing counted them.
    flops
        By the formulas of `cluster.plan`, with the length of the corpus's own captions. Answers count at their longest.
    seconds, cpu_seconds, max_rss_mb
        Wall and processor time summed over the jobs, and the most memory of one: Snakemake's measurements
        (``timings/``). Of a job that was interrupted they hold the last part alone, of one on several nodes the first.
    remark
        Which measurements are missing; what is missing is empty, for all the jobs of that row.
    """
    lengths = _lengths(preset, results)
    mean = float(lengths.mean())
    given = Assumptions(caption_tokens=mean, caption_spread=float(lengths.std() / mean), captions=len(lengths))
    work = Work(preset, given)
    cells = {cell.name: cell for cell in work.cells}
    tasks: dict[tuple[str, str], list[Task]] = {}
    for task in tasks_of(work):
        rule, _, rest = task.name.partition(" ")
        if rule in STAGES:
            tasks.setdefault((STAGES[rule], rest), []).append(task)
    rows = []
    for (stage, name), alike in tasks.items():
        cell = cells.get(name)
        tokens = float(lengths.sum()) if stage == "scores" else _trained(preset, results, stage, cell)
        rows.append(
            {
                "stage": stage,
                "arch": cell.arch if cell else "",
                "objective": cell.objective if cell else "",
                "scale_tokens": parse_tokens(cell.scale) if cell else np.nan,
                "jobs": sum(task.count for task in alike),
                "runs": preset.seeds if cell else np.nan,
                "gpus": alike[0].gpus,
                "tokens": tokens,
                "positions": tokens * _positions(stage, cell),
                "flops": sum(task.count * task.flops for task in alike) or np.nan,
            }
            | _measured(results / "timings", timing_files(preset, results / "timings", stage, cell))
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"scale_tokens": "Int64", "runs": "Int64", "tokens": "Int64"})


def timing_files(preset: Preset, timings: Path, stage: str, cell: Cell | None = None) -> list[str]:
    """Where below `timings` the rules of the workflow put the measurements of a stage's jobs, one for each job.

    Answers are given in batches of benchmarks: one batch, and those that are there beside it.
    """
    train = shard_names(preset.corpus, "train")
    split = {"train": train, "val": ["0000"]}
    if stage in ("corpus", "tokens"):
        splits = split | ({"text_only": ["0000"]} if stage == "corpus" and _text_only(preset) else {})
        return [f"{stage}/{name}/{shard}.tsv" for name, shards in splits.items() for shard in shards]
    if stage in ("tokenizer", "llm", "vision"):
        return [f"backbones/{stage}.tsv"]
    if stage == "reference":
        return ["reference/base.tsv"]
    if stage == "scores":
        return [f"scores/base/{shard}.tsv" for shard in train]
    if stage == "heldout_scores":
        return ["scores/heldout.tsv"]
    if stage == "score":
        return [f"score/{name}.tsv" for name in _measures(preset)]
    assert cell is not None
    base = f"{cell.arch}/{cell.objective}/{cell.scale}"
    jobs = [base] if preset.seeds_together else [f"{base}/seed{seed}" for seed in range(preset.seeds)]
    if stage in ("pretrain", "tune"):
        return [f"{stage}/{job}.tsv" for job in jobs]
    steps = [f".step{step}" for step in cell.kept] if stage == "predict_step" else [""]
    return [
        f"predict/{job}{step}.{batch}.tsv" for job in jobs for step in steps for batch in _batches(timings, bool(step))
    ]


def _text_only(preset: Preset) -> bool:
    """Whether there are captions without pictures."""
    scratch = isinstance(preset.tokenizer, Tokenizer) or isinstance(preset.backbones.llm, LLM)
    return scratch or preset.reference.text_only


def _measures(preset: Preset) -> list[str]:
    """What the scoring jobs are called."""
    captioned = [name for name, entry in preset.benchmarks.items() if entry.answer == "caption"]
    others = [name for name in preset.benchmarks if name not in captioned]
    if preset.seeds_together:
        return [*others, *captioned]
    return [f"{name}/{run}" for name in others for run in [*preset.runs(), "baseline"]] + captioned


def _batches(timings: Path, on_the_way: bool) -> list[int]:
    """The numbers of the batches of benchmarks of which there is a measurement, the first in any case."""
    parts = [path.stem.split(".") for path in (timings / "predict").rglob("*.tsv")]
    return sorted({0} | {int(number) for *_, before, number in parts if before.startswith("step") == on_the_way})


def _measured(timings: Path, names: Sequence[str]) -> dict[str, Any]:
    """Sums over jobs, or nothing and why."""
    there = [timings / name for name in names if (timings / name).is_file()]
    nothing = {"seconds": np.nan, "cpu_seconds": np.nan, "max_rss_mb": np.nan}
    if len(there) < len(names):
        return nothing | {"remark": f"{len(names) - len(there)} of {len(names)} timings are missing"}
    table = pd.concat([_timing(path) for path in there])
    short = int(table.isna().any(axis=1).sum())
    return {
        "seconds": table.s.sum(min_count=len(table)),
        "cpu_seconds": table.cpu_time.sum(min_count=len(table)),
        "max_rss_mb": table.max_rss.max(skipna=False),
        "remark": f"{short} of {len(names)} jobs were too short to be measured" if short else "",
    }


def _timing(path: Path) -> pd.DataFrame:
    """Snakemake's measurement of one job."""
    try:
        table = pd.read_csv(path, sep="\t", usecols=["s", "max_rss", "cpu_time"], na_values=["NA", "-"])
        return table.iloc[-1:].astype(float)
    except (OSError, ValueError):
        raise UserError(f"{path}: not a timing of Snakemake's; delete it and run that job again") from None


def _lengths(preset: Preset, results: Path) -> np.ndarray:
    """Tokens of every training caption, end of sequence included."""
    files = shard_files(results / "tokens/train", shard_names(preset.corpus, "train"))
    counts = [pc.list_value_length(read_table(path)["input_ids"]).to_numpy() for path in files]
    return np.concatenate(counts).astype(float)


def _trained(preset: Preset, results: Path, stage: str, cell: Cell | None) -> float:
    """Label tokens that a stage has trained on; NaN where it trains nothing."""
    if stage in ("pretrain", "tune"):
        assert cell is not None
        folder = results / "runs" / cell.arch / cell.objective / cell.scale
        part = "tuned" if stage == "tune" else "pretrain"
        return _tokens(folder / f"seed{seed}" / part / "log.jsonl" for seed in range(preset.seeds))
    # What was fetched has no log; a reference in several folds has one for each.
    logs = sorted((results / LOGS[stage]).rglob("log.jsonl")) if stage in LOGS else []
    return _tokens(logs) if logs else float("nan")


def _tokens(logs: Iterable[Path]) -> float:
    """Sum of the tokens seen at the end of some logs."""
    total = 0
    for log in logs:
        try:
            total += int(json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["tokens"])
        except (OSError, ValueError, LookupError):
            raise UserError(f"{log}: not a training's log; train that run (again)") from None
    return float(total)


def _positions(stage: str, cell: Cell | None) -> float:
    """Positions that an LLM computes for each label token."""
    if stage == "pretrain":
        assert cell is not None
        return cell.document.positions / cell.document.labels
    return 1.0 if stage in ("llm", "reference", "scores") else float("nan")


if __name__ == "__main__":
    run(app)
