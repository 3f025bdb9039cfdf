"""The whole way through Snakemake: complete, idempotent, precise about what to redo, unharmed by kills."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from eval.outcomes import FIGURE_ENDINGS, OUTCOMES, TABLE_ENDINGS
from eval.stored import FILES
from tests.end_to_end.running import ROOT, command, planned, refused, snakemake

PHOTOS = os.environ.get("PRIOR_PHOTOS")


def test_every_result_is_there(tiny: tuple[Path, str]) -> None:
    results = tiny[0] / "results" / "mine"
    metrics = pd.read_csv(results / "metrics.csv")
    assert set(metrics.arch) == {"hlvlm", "ulvlm", "baseline"}
    assert set(metrics.objective) == {"ntp", "prior", "prior-a2", "random", "always_yes", "always_no", "always_A"}
    before_tuning = {"heldout", "CHAIR", "CaptionChoice"}
    assert set(metrics.benchmark) == {"MME", "POPE", "MMBench", "MMStar", "SEEDBench"} | before_tuning
    # Every model meets every question, with its picture and without, and captions every picture before it is tuned.
    runs = 2 * (2 * 3 + 1)
    models = metrics[(metrics.arch != "baseline") & ~metrics.benchmark.isin(before_tuning)]
    met = models.groupby(["arch", "objective", "scale_tokens", "seed"])[["benchmark", "picture"]].nunique()
    assert (met.benchmark == 5).all() and (met.picture == 2).all() and len(met) == runs
    chosen = metrics[
        (metrics.benchmark == "CaptionChoice") & (metrics.metric == "accuracy") & (metrics.arch == "hlvlm")
    ]
    way = chosen[(chosen.scale_tokens == 12_000) & (chosen.picture == "with")].groupby("objective").step.nunique()
    assert way.to_dict() == {"ntp": 3, "prior": 3, "prior-a2": 1}, "kept checkpoints answer before they are tuned"
    items = pd.read_parquet(results / "items.parquet")
    kept = models[(models.benchmark == "SEEDBench") & (models.metric == "accuracy")]
    keys = ["arch", "objective", "scale_tokens", "seed", "picture"]
    own = items[(items.benchmark == "SEEDBench") & (items.arch != "baseline")].groupby(keys).correct.mean() * 100
    assert kept.set_index(keys).value.sort_index().tolist() == pytest.approx(own.sort_index().tolist())
    captions = metrics[metrics.benchmark == "CHAIR"]
    assert set(captions.stage) == {"pretrain"} and set(captions.picture) == {"with", "without"}
    assert len(captions[captions.metric == "chair_i_equal"]) == runs * 2
    asked = pd.read_csv(results / "benchmarks.csv").set_index("benchmark")
    assert list(asked.source) == ["generated"] * 7 and asked.rows["MMBench"] == 40
    made = [f"tables/{name}.{ending}" for name in OUTCOMES for ending in TABLE_ENDINGS]
    drawn = [name for name, heading in OUTCOMES.items() if heading.figure]
    made += [f"figures/{name}.{ending}" for name in drawn for ending in FIGURE_ENDINGS]
    for name in ("report.html", "viewer.html", "claims.md", "claims.csv", *made):
        assert (results / name).stat().st_size > 100, name
    # Only what needs more scales or seeds than the smallest preset has is not given, and says so.
    refused = [name for name in OUTCOMES if "missing" in pd.read_csv(results / f"tables/{name}.csv")]
    assert refused == [], refused
    assert not list(results.rglob("*.bin")) + list(results.rglob("*.pkl")), "nothing pickled is published"
    assert not list((results / ".state").rglob("checkpoint-*")), "private checkpoints go with the run"


def test_a_finished_run_has_nothing_to_do_and_a_changed_value_redoes_what_depends_on_it(
    tiny: tuple[Path, str], tmp_path: Path
) -> None:
    folder, preset = tiny
    assert not planned(folder, preset)
    outputs = {}
    shown = {"outcomes", "claims", "report"}
    measured = {"metrics", "costs", "fits", "viewer", "all", *shown}
    captioned = {"predict", "predict_step", "score", "score_captions", *measured}
    trained = {"pretrain", "tune", "mutual", "training", "provenance", *captioned}
    referred = {"reference", "scores", "heldout_scores", "quality", "words", *trained}
    for change, expected in {
        "statistics: {confidence: 0.9}": {"fits", "all", *shown},
        "evaluation: {max_new_tokens: 9}": captioned,
        "objectives: {ntp: {kind: ntp}, prior: {kind: prior, alpha: 2.0}}": trained,
        "benchmarks: {MME: {items: 28}, POPE: {items: 36}, MMBench: {items: 10}, MMStar: {items: 20}, "
        "SEEDBench: {items: 20}, CHAIR: {answer: caption, items: 30}, "
        "CaptionChoice: {stage: pretrain, answer: likelihood, items: 20}}": {
            "benchmark_pope", "prompts", "sources", *captioned - {"predict_step"},
        },
        "reference: {training: {learning_rate: 0.5}}": referred,
        "corpus: {val: 61}": {"corpus", "tokens", "benchmark_captionchoice", "prompts", "sources", *referred},
        "corpus: {text_only: 501}": {
            "corpus", "tokenizer", "tokens", "count", "llm", "vision", *referred,
        },
    }.items():  # fmt: skip
        Path(preset).write_text(f"extends: tiny\n{change}\n")
        outputs[change] = planned(folder, preset)
        assert set(outputs[change]) == expected, change
    redone = outputs["corpus: {text_only: 501}"]["corpus"]
    assert "/text_only" in redone and "/train" not in redone and "/val" not in redone
    # What PRIOR's settings change, NTP's runs do not notice.
    redone = outputs["objectives: {ntp: {kind: ntp}, prior: {kind: prior, alpha: 2.0}}"]["pretrain"]
    assert "runs/hlvlm/prior/" in redone and "runs/hlvlm/ntp/" not in redone
    # A preset is known by its name, wherever it lies.
    Path(preset).write_text("extends: tiny\n")
    moved = folder / "elsewhere" / "mine.yaml"
    moved.parent.mkdir()
    moved.write_text("extends: tiny\n")
    assert not planned(folder, str(moved))
    # A benchmark with a mistake is refused; once it is mended, nothing is trained again for it.
    other = shutil.copytree(folder, tmp_path / "other")
    table = other / "results/mine/benchmarks/POPE.tsv"
    whole = table.read_text()
    table.write_text(whole.replace("\tYes\t", "\tPerhaps\t", 1))
    assert "POPE.tsv" in refused(other, preset, "results/mine/benchmarks/POPE.jsonl")[-1]
    table.write_text(whole)
    assert not {"pretrain", "tune"} & set(planned(other, preset))


def test_results_are_made_anew_from_what_was_stored(tiny: tuple[Path, str], tmp_path: Path) -> None:
    """Elsewhere, without corpus, models and VLMEvalKit, to the same bytes."""
    folder, _ = tiny
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: tiny\n")
    for name in FILES:
        (tmp_path / "stored").mkdir(exist_ok=True)
        shutil.copy(folder / "results/mine" / name, tmp_path / "stored" / name)
    call = [*command(tmp_path, str(preset), "figures"), "stored=stored", "vlmevalkit_python=nowhere/python"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    made = [path.relative_to(folder) for path in (folder / "results/mine").glob("tables/*")]
    made += [path.relative_to(folder) for path in (folder / "results/mine").glob("figures/*")]
    for path in (*made, Path("results/mine/claims.csv"), Path("results/mine/claims.md")):
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path
    assert not (tmp_path / "results/mine/metrics.csv").exists(), "what is stored stays where it is"
    call[-2] = "stored=nowhere"
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    mistake = (
        "error: stored: there is no nowhere/metrics.csv; name a folder in which a run of this preset was published"
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == mistake
    # Of a run of one's own nothing is replaced.
    call[-2] = "stored=stored"
    shutil.copy(tmp_path / "stored/metrics.csv", tmp_path / "results/mine/metrics.csv")
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    mistake = "error: stored: results/mine holds a run, whose results those of stored would replace; move one away"
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == mistake


def test_snakemakes_own_report_shows_every_result(tiny: tuple[Path, str], tmp_path: Path) -> None:
    folder, preset = tiny
    snakemake(folder, preset, "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as report:
        names = {Path(name).name for name in report.namelist()}
        page = report.read(next(name for name in report.namelist() if name.endswith("report.html"))).decode()
    drawn = {f"{name}.png" for name, heading in OUTCOMES.items() if heading.figure}
    assert {*drawn, "claims.html", *(f"{name}.html" for name in OUTCOMES)} <= names
    assert all(heading.category in page for heading in OUTCOMES.values()) and "runtime" in page.lower()


# A path on a line of its own, where the block is a file, and a fenced block.
BLOCK = re.compile(r"(?:^`(?P<path>[^`\n]+)`\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guide_to_adding_a_benchmark_holds_to_the_letter(tiny: tuple[Path, str], tmp_path: Path) -> None:
    """In a copy of the checkout that has made the run with which the guide begins."""
    checkout = tmp_path / "checkout"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    for name in (".venv", ".venv-vlmevalkit"):
        (checkout / name).symlink_to(ROOT / name)
    shutil.copytree(tiny[0] / "results", checkout / "results", dirs_exist_ok=True)
    shutil.copytree(tiny[0] / ".snakemake", checkout / ".snakemake")
    said = ""
    # Arguments of the `make` that runs the tests are none of the guide's.
    plain = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES")}
    for block in BLOCK.finditer((ROOT / "docs/benchmarks.md").read_text()):
        path, kind, text = block.group("path", "kind", "text")
        if path:
            (checkout / path).write_text(text)
        elif kind == "bash":
            done = subprocess.run(["bash", "-ec", text], cwd=checkout, capture_output=True, text=True, env=plain)
            assert done.returncode == 0, text + done.stdout[-3000:] + done.stderr[-6000:]
            said = done.stdout + done.stderr
        else:
            # What the last command printed.
            jobs = {tuple(line.split()) for line in text.splitlines()[2:]}
            assert jobs == {tuple(line.split()) for line in said.splitlines() if re.fullmatch(r"\w+ +\d+", line)}
    assert "UNOFFICIAL" in said
    metrics = pd.read_csv(checkout / "results/mine/metrics.csv")
    asked = metrics[(metrics.arch != "baseline") & (metrics.metric == "accuracy")].benchmark.value_counts()
    for name in ("Counting", "RealWorldQA", "Backgrounds"):
        assert asked[name] == 2 * (2 * 3 + 1) * 2, name
    # The run of before was left alone.
    mine, first = (
        pd.read_csv(results / "metrics.csv").query("benchmark == 'POPE'").to_csv(index=False)
        for results in (checkout / "results/mine", tiny[0] / "results/mine")
    )
    assert mine == first
    old = tiny[0] / "results/mine/predictions/hlvlm/ntp/3k/seed0/tuned/final/POPE.tsv"
    assert (checkout / old.relative_to(tiny[0])).stat().st_mtime_ns == old.stat().st_mtime_ns


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
    mistake = "error: objectives.mine.kind: there is no objective 'priro'; did you mean 'prior'?"
    assert refused(tmp_path, str(preset), "--dry-run")[-1] == mistake
    preset.write_text("extends: tiny\nbenchmarks: {MEM: {items: 30}}\n")
    mistake = "error: preset 'mine': benchmarks.MEM: no rule makes it; did you mean 'MME'?"
    assert refused(tmp_path, str(preset), "--dry-run")[-1] == mistake
    preset.write_text("extends: photos\ncorpus: {folder: nowhere}\n")
    mistake = "error: corpus.folder: there is no 'nowhere'; name the right one in preset 'mine'"
    assert refused(tmp_path, str(preset))[-1] == mistake
    preset.write_text("extends: tiny\nbenchmarks_dir: nowhere\nbenchmarks: {MME: {source: official}}\n")
    mistake = "error: benchmarks_dir: MME: there is no 'nowhere/MME.tsv'; name the right one in preset 'mine'"
    assert refused(tmp_path, str(preset))[-1] == mistake
    preset.write_text("extends: tiny\n")
    call = [*command(tmp_path, str(preset)), "vlmevalkit_python=nowhere/python"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    mistake = "error: there is no 'nowhere/python', in which VLMEvalKit runs; make it with `make env`"
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == mistake
    assert not (tmp_path / "results").exists()


def test_what_is_official_is_fetched_and_never_generated(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    (tmp_path / "MME.tsv").touch()
    (tmp_path / "SEEDBench.tsv").touch()
    preset.write_text(
        "extends: tiny\nbenchmarks_dir: .\n"
        "benchmarks: {MME: {source: official}, SEEDBench: {source: official}, POPE: {items: 30}}\n"
    )
    made = planned(tmp_path, str(preset))
    assert "/MME.tsv" in made["benchmark_official"] and "/SEEDBench.tsv" in made["benchmark_official"]
    assert "benchmark_mme" not in made and "benchmark_seedbench" not in made and "benchmark_pope" in made


def test_a_folder_corpus_says_what_is_wrong_with_it_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    pictures = tmp_path / "album" / "images"
    pictures.mkdir(parents=True)
    for shade in range(30):
        Image.new("RGB", (8, 8), (shade, 100, 200)).save(pictures / f"{shade}.png")
    (pictures / "0.png").write_text("no picture")
    captions = tmp_path / "album" / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"{shade}.png,a shade of {shade}\n" for shade in range(30)))
    preset = tmp_path / "mine.yaml"

    def write(settings: str, scales: str) -> str:
        preset.write_text(
            f"extends: photos\ncorpus: {{folder: album, text_only: null, {settings}}}\nscales: {scales}\n"
        )
        return str(preset)

    told = refused(tmp_path, write("max_bad_fraction: 0", "[10, 20, 40]"), "results/mine/tokenizer")
    assert told[-1].startswith("error: captions.csv: 1 of 30 pictures cannot be used ('0.png' cannot be decoded)")
    told = refused(tmp_path, write("max_bad_fraction: 0.1", "[10, 20, 4k]"), "results/mine/tokens/train.json")
    assert told[-1].startswith("error: scales: 4k: 4000 caption tokens are asked for, but the corpus holds ")
    said = snakemake(tmp_path, write("max_bad_fraction: 0.1", "[10, 20, 40]"), "results/mine/tokens/train.json")
    assert said.count("\nnote: captions.csv: 1 of 30 pictures cannot be used") == 1

    def redone() -> set[str]:
        return set(planned(tmp_path, str(preset), "results/mine/tokenizer"))

    original = (pictures / "1.png").read_bytes(), (pictures / "1.png").stat()
    (pictures / "1.png").write_bytes((pictures / "2.png").read_bytes())
    assert redone() == {"corpus", "tokenizer"}
    (pictures / "1.png").write_bytes(original[0])
    os.utime(pictures / "1.png", ns=(original[1].st_atime_ns, original[1].st_mtime_ns))
    assert redone() == set()
    captions.write_text(captions.read_text().replace("a shade of 7\n", "a shade of seven\n"))
    assert redone() == {"corpus", "tokenizer"}


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
