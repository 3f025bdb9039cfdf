"""Costs of a finished preset: the workflow's own timings, the plan's FLOPs, logs' tokens, and what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cluster.plan.assumptions import Assumptions
from cluster.plan.jobs import tasks_of
from cluster.plan.work import Work
from cluster.spent import CELLS, STAGES, spent, timing_files
from prior.config import Preset, parse_tokens
from prior.errors import UserError
from prior.presets import load_preset
from tests.end_to_end.running import snakemake

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
LENGTHS = [20, 30, 40] * 10


def stages(preset: Preset) -> list[tuple[str, str]]:
    """The stages of a preset that are measured, with the runs that they are about."""
    names = [task.name.partition(" ") for task in tasks_of(Work(preset, Assumptions()))]
    return list(dict.fromkeys((STAGES[rule], rest) for rule, _, rest in names if rule in STAGES))


def files(preset: Preset, timings: Path) -> list[str]:
    cells = {cell.name: cell for cell in Work(preset, Assumptions()).cells}
    return [file for stage, name in stages(preset) for file in timing_files(preset, timings, stage, cells.get(name))]


def results(folder: Path, preset: Preset) -> Path:
    """A finished preset: every job took two seconds, one of the processor, and 300 MB."""
    for path in files(preset, folder / "timings"):
        (folder / "timings" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "timings" / path).write_text(f"{HEAD}2.0\t0:00:02\t300.0\t9\t9\t9\t0\t0\t90\t1.0\n")
    for name in [
        "backbones/llm",
        "reference/base",
        *(f"runs/{run}/{stage}" for run in preset.runs() for stage in preset.stages),
    ]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "tokens": 100 * step} for step in (1, 7)]
        (folder / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tokens/train").mkdir(parents=True)
    table = pa.table({"input_ids": pa.array([list(range(length)) for length in LENGTHS], pa.list_(pa.int32()))})
    with pa.ipc.new_file(str(folder / "tokens/train/0000.arrow"), table.schema) as writer:
        writer.write_table(table)
    return folder


@pytest.fixture(scope="module")
def tiny() -> Preset:
    return load_preset("tiny")


@pytest.mark.parametrize("name", ["tiny", "gpu"])
def test_timings_are_where_the_workflow_puts_them(name: str, tmp_path: Path) -> None:
    told = snakemake(tmp_path, name, "--dry-run", "--quiet", "host", "progress")
    expected = re.findall(rf"^ +benchmark: results/{name}/timings/(\S+)$", told, re.MULTILINE)
    assert sorted(files(load_preset(name), tmp_path)) == sorted(expected) and expected


def test_costs_are_the_sums_of_jobs_runs_and_the_plan(tiny: Preset, tmp_path: Path) -> None:
    table = spent(tiny, results(tmp_path, tiny))
    assert (table.remark == "").all()
    assert table.seconds.tolist() == (2.0 * table.jobs).tolist() and table.cpu_seconds.tolist() == table.jobs.tolist()
    assert (table.max_rss_mb == 300).all()
    trained = table[table.stage == "pretrain"]
    assert trained.runs.sum() == len(tiny.runs()) and (trained.tokens == 700 * trained.runs).all()
    assert set(zip(trained.arch, trained.objective, trained.scale_tokens, strict=True)) == {
        (arch, objective, parse_tokens(scale)) for arch, objective, scale, _ in (run.split("/") for run in tiny.runs())
    }
    single = table[~table.stage.isin(CELLS)].set_index("stage")
    assert single.tokens["scores"] == sum(LENGTHS) and single.tokens["reference"] == single.tokens["llm"] == 700
    # The FLOPs are the plan's, with captions as long as these and as many.
    given = Assumptions(caption_tokens=30, caption_spread=float(np.std(LENGTHS)) / 30, captions=30)
    planned = sum(task.count * task.flops for task in tasks_of(Work(tiny, given)))
    assert table.flops.sum() == pytest.approx(planned, rel=1e-12) and planned > 0
    # A picture of 48 pixels is nine patches to an H-LVLM, in captions of 30 tokens.
    seen = trained[trained.arch == "hlvlm"]
    assert (seen.positions / seen.tokens).to_numpy() == pytest.approx(39 / 30)


def test_what_was_not_measured_is_missing_and_never_nothing(tiny: Preset, tmp_path: Path) -> None:
    folder = results(tmp_path, tiny)
    (folder / "timings/pretrain/hlvlm/ntp/6k.tsv").unlink()
    (folder / "timings/corpus/val/0000.tsv").write_text(f"{HEAD}0.4\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n")
    (folder / "timings/predict/ulvlm/ntp/6k.1.tsv").write_bytes((folder / "timings/reference/base.tsv").read_bytes())
    table = spent(tiny, folder)
    cell = (table.arch == "hlvlm") & (table.objective == "ntp") & (table.scale_tokens == 6000)
    gone = table[cell & (table.stage == "pretrain")].iloc[0]
    assert gone.remark == "1 of 1 timings are missing" and gone.flops > 0
    assert gone[["seconds", "cpu_seconds", "max_rss_mb"]].isna().all()
    corpus = table[table.stage == "corpus"].iloc[0]
    assert corpus.seconds == 4.4 and np.isnan(corpus.cpu_seconds) and "1 of 3 jobs were too short" in corpus.remark
    # One arm answered a second batch of benchmarks, the others have still to.
    answers = table[table.stage == "predict"].set_index(["arch", "objective", "scale_tokens"])
    assert answers.seconds[("ulvlm", "ntp", 6000)] == 4 and answers.seconds.notna().sum() == 1
    (folder / "timings/reference/base.tsv").write_text("no timing\n")
    with pytest.raises(UserError, match=r"base\.tsv: not a timing"):
        spent(tiny, folder)


def test_a_log_that_is_gone_is_named(tiny: Preset, tmp_path: Path) -> None:
    folder = results(tmp_path, tiny)
    (folder / "runs" / tiny.runs()[0] / "tuned/log.jsonl").unlink()
    with pytest.raises(UserError, match=r"seed0/tuned/log\.jsonl"):
        spent(tiny, folder)


def test_costs_survive_the_disk(tiny: Preset, tmp_path: Path) -> None:
    from cluster.spent import write

    folder = results(tmp_path / "results", tiny)
    write("tiny", folder, tmp_path / "costs.csv")
    table = pd.read_csv(tmp_path / "costs.csv")
    assert len(table) == len(spent(tiny, folder)) and table.flops.sum() > 0
