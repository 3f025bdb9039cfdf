"""The whole way through Snakemake: complete, idempotent, precise about what to redo, unharmed by kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = os.environ.get("PRIOR_PHOTOS")


def command(folder: Path, preset: str, *more: str) -> list[str]:
    program = str(Path(sys.executable).with_name("snakemake"))
    return [
        program, "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2",
        "--rerun-incomplete", "--show-failed-logs", *more, "--config", f"preset={preset}",
    ]  # fmt: skip


def snakemake(folder: Path, preset: str, *more: str) -> str:
    done = subprocess.run(command(folder, preset, *more), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def planned(folder: Path, preset: str) -> set[str]:
    """Rules that a dry run would execute."""
    listed = snakemake(folder, preset, "--dry-run", "--quiet", "host", "progress")
    return {line.split()[1].rstrip(":") for line in listed.splitlines() if line.startswith(("rule ", "localrule "))}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tiny")
    preset = folder / "mine.yaml"
    preset.write_text("extends: tiny\n")
    snakemake(folder, str(preset))
    return folder, str(preset)


def test_every_result_is_there(tiny: tuple[Path, str]) -> None:
    results = tiny[0] / "results" / "mine"
    metrics = pd.read_csv(results / "metrics.csv")
    assert set(metrics.arch) == {"hlvlm", "ulvlm", "baseline"}
    assert set(metrics.objective) == {"ntp", "prior", "random", "always_yes", "always_no", "always_A"}
    assert set(metrics.benchmark) == {"heldout", "MME", "POPE", "MMBench", "MMStar", "SEEDBench"}
    # Every model meets every benchmark, with its picture and without.
    models = metrics[(metrics.arch != "baseline") & (metrics.benchmark != "heldout")]
    met = models.groupby(["arch", "objective", "scale_tokens", "seed"])[["benchmark", "picture"]].nunique()
    assert (met.benchmark == 5).all() and (met.picture == 2).all() and len(met) == 2 * 2 * 3
    items = pd.read_parquet(results / "items.parquet")
    kept = models[(models.benchmark == "SEEDBench") & (models.metric == "accuracy")]
    keys = ["arch", "objective", "scale_tokens", "seed", "picture"]
    own = items[(items.benchmark == "SEEDBench") & (items.arch != "baseline")].groupby(keys).correct.mean() * 100
    assert kept.set_index(keys).value.sort_index().tolist() == pytest.approx(own.sort_index().tolist())
    for name in ("report.html", "tables/main.md", "tables/losses.csv", "figures/scaling.pdf", "figures/losses.png"):
        assert (results / name).stat().st_size > 500, name
    assert not list(results.rglob("*.bin")) + list(results.rglob("*.pkl")), "nothing pickled is published"
    assert not list((results / ".state").rglob("checkpoint-*")), "private checkpoints go with the run"


def test_a_finished_run_has_nothing_to_do_and_a_changed_value_redoes_what_depends_on_it(
    tiny: tuple[Path, str],
) -> None:
    folder, preset = tiny
    assert planned(folder, preset) == set()
    shown = {"tables", "plots", "report"}
    measured = {"metrics", "fits", "all", *shown}
    for change, expected in {
        "statistics: {confidence: 0.9}": {"fits", "all", *shown},
        "evaluation: {max_new_tokens: 9}": {"predict", "score", *measured},
        "objectives: {ntp: {kind: ntp}, prior: {kind: prior, alpha: 2.0}}": {
            "pretrain", "tune", "predict", "score", *measured,
        },
        "reference: {training: {learning_rate: 0.5}}": {
            "reference", "scores", "words", "pretrain", "tune", "predict", "score", *measured,
        },
    }.items():  # fmt: skip
        Path(preset).write_text(f"extends: tiny\n{change}\n")
        assert planned(folder, preset) == expected, change
    # What PRIOR's settings change, NTP's runs do not notice.
    listed = snakemake(folder, preset, "--dry-run")
    assert (
        "/prior/" in listed and "runs/hlvlm/ntp" not in listed.replace("input: ", "\ninput: ").split("rule metrics")[0]
    )
    Path(preset).write_text("extends: tiny\n")
    assert planned(folder, preset) == set()


def test_killed_runs_end_with_the_same_metrics(tiny: tuple[Path, str], tmp_path: Path) -> None:
    """SIGKILL to Snakemake and its jobs, three times at whatever they were doing."""
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: tiny\n")
    for seconds in (12, 25, 25):
        process = subprocess.Popen(
            command(tmp_path, str(preset)), cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(seconds)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        snakemake(tmp_path, str(preset), "--unlock")
    snakemake(tmp_path, str(preset))
    results = [folder / "results" / "mine" for folder in (tmp_path, tiny[0])]
    for name in ("metrics.csv", "fits.json", "tables/main.csv", "figures/losses.png"):
        first, second = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in results)
        assert first == second, name
    assert not [path for path in results[0].rglob("*.part")], "nothing half-written stays"


def test_a_mistake_in_the_preset_stops_snakemake_with_one_line_and_code_2(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: tiny\nobjectives: {ntp: {kind: ntp}, mine: {kind: priro}}\n")
    done = subprocess.run(command(tmp_path, str(preset), "--dry-run"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line]
    assert errors == ["error: objectives.mine.kind: there is no objective 'priro'; did you mean 'prior'?"]
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(not PHOTOS, reason="PRIOR_PHOTOS names no folder of captioned photographs")
def test_real_photographs(tmp_path: Path) -> None:
    """The photos preset cut short: real captions are scored, both architectures train and choose captions."""
    preset = tmp_path / "few.yaml"
    preset.write_text(
        "extends: photos\ncorpus: {max_captions: 600}\nscales: [1k, 2k, 4k]\nseeds: 1\n"
        "benchmarks: {CaptionChoice: {answer: likelihood, items: 40}}\n"
    )
    snakemake(tmp_path, str(preset))
    results = tmp_path / "results" / "few"
    metrics = pd.read_csv(results / "metrics.csv")
    chosen = metrics[(metrics.benchmark == "CaptionChoice") & (metrics.metric == "accuracy")]
    assert len(chosen) == 2 * 2 * 3 * 2 + 2 and chosen.value.between(0, 100).all()
    words = pd.read_parquet(results / "words.parquet")
    assert len(words) > 3000 and words.weight.between(0, 1).all() and words.relevant.isna().all()
    quality = json.loads((results / "reference/base/quality.json").read_text())["all"]
    assert 1 < quality["held_out"]["perplexity"] < 1000
