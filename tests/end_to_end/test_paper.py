"""The preset `paper` from end to end in small copies: real classes, tokenizer and files, fetched from a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from prior.presets import load_preset
from tests.end_to_end.running import ROOT, command
from tests.eval import official_tsvs
from tests.prior.fake_hub import fake_hub
from tests.prior.small_hub import write_clip, write_llm, write_tar

WORDS = ["a", "photo", "of", "the", "new", "red", "car", "on", "sale", "in", "london", "by", "two", "dogs"]


def captions(count: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, 16))) for _ in range(count)]


def jobs(said: str) -> Counter[str]:
    """How many jobs of each rule a dry run counts."""
    lines = said.split("Job stats:")[1].split("total")[0].splitlines()
    return Counter(
        {line.split()[0]: int(line.split()[1]) for line in lines if line.strip() and line.split()[-1].isdigit()}
    )


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """A finished run: its folder, its preset, and its environment, in which the hub is gone by now."""
    folder = tmp_path_factory.mktemp("paper")
    preset = folder / "shrunk.yaml"
    text = (ROOT / "tests/end_to_end/shrunk.yaml").read_text()
    preset.write_text(text.replace("../../workflow", str(ROOT / "workflow")))
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir()
    pd.DataFrame(official_tsvs.mme()[:16]).to_csv(benchmarks / "MME.tsv", sep="\t", index=False)
    os.environ["PRIOR_BENCHMARKS"] = str(benchmarks)
    settings = load_preset(str(preset))
    made = folder / "made"
    write_llm(made / "llm", settings.backbones.llm.config)
    write_clip(made / "clip", settings.backbones.vision.config)
    rng = np.random.default_rng(0)
    (made / "data").mkdir()
    for number in (0, 1, 2, 3, 2175):
        write_tar(made / f"data/cc12m-train-{number:04d}.tar", captions(24, rng), rng)
    with fake_hub(folder / "hub") as hub:
        hub.commit("mistralai/Mistral-7B-v0.1", made / "llm")
        hub.commit("openai/clip-vit-large-patch14-336", made / "clip")
        hub.commit("datasets/pixparse/cc12m-wds", made / "data")
        environment = {**hub.environment(folder / "home"), "PRIOR_BENCHMARKS": str(benchmarks)}
        call = command(folder, str(preset))
        done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-8000:]
    return folder, str(preset), environment


def test_every_kind_of_job_of_the_paper_has_run(paper: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    folder, preset, environment = paper

    def planned(where: Path, preset: str) -> Counter[str]:
        call = [
            *command(where, preset, "--dry-run", "--quiet", "rules", "host"),
            f"vlmevalkit_python={shutil.which('true')}",
        ]
        done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return jobs(done.stdout + done.stderr) if "Job stats:" in done.stdout + done.stderr else Counter()

    # The benchmarks' folder stands in for a download.
    at_full_size = planned(tmp_path, "paper")
    small = planned(tmp_path, preset)
    assert set(small) == set(at_full_size)
    assert not planned(folder, preset), "and all of it is done"
    assert at_full_size["tokens"] == at_full_size["scores"] + 1 == 61


def test_the_small_paper_has_the_results_of_the_large(paper: tuple[Path, str, dict[str, str]]) -> None:
    results = paper[0] / "results/shrunk"
    metrics = pd.read_csv(results / "metrics.csv")
    models = metrics[(metrics.arch != "baseline") & (metrics.benchmark != "heldout")]
    assert set(models.arch) == {"hlvlm", "ulvlm"} and set(models.objective) == {"ntp", "prior", "prior-a2"}
    # Checkpoints on the way are asked at the largest scale; the ablation ends on the way, and so does its schedule.
    steps = models[models.scale_tokens == 900].groupby(["arch", "objective"]).step.agg(lambda found: sorted(set(found)))
    for arch in ("hlvlm", "ulvlm"):
        last = yaml.safe_load((results / f"runs/{arch}/ntp/900/seed0/pretrain/run.yaml").read_text())["steps"]
        assert last > 4
        assert steps[arch, "ntp"] == steps[arch, "prior"] == [2, 4, last] and steps[arch, "prior-a2"] == [2, 3]
    rates = [json.loads(line)["lr"] for line in (results / "runs/hlvlm/prior-a2/900/seed0/pretrain/log.jsonl").open()]
    whole = [json.loads(line)["lr"] for line in (results / "runs/hlvlm/prior/900/seed0/pretrain/log.jsonl").open()]
    assert rates == whole[:3]
    table = pd.read_csv(results / "tables/main.csv")
    assert "prior-a2" not in table.to_string(), "an ablation that ends early is no rival of finished runs"


def test_what_was_fetched_is_locked_and_used(paper: tuple[Path, str, dict[str, str]]) -> None:
    folder, _, _ = paper
    lock = (folder / "shrunk.lock").read_text()
    for name in ("mistralai/Mistral-7B-v0.1", "openai/clip-vit-large-patch14-336", "datasets/pixparse/cc12m-wds"):
        assert f"\n{name}: " in lock
    results = folder / "results/shrunk"
    assert not list(results.rglob("*.tar")), "a tar file goes when it has been read"
    assert not list(results.rglob("*.bin")) + list(results.rglob("*.pkl"))
    for arch, classes in (("hlvlm", ["LlavaForConditionalGeneration"]), ("ulvlm", ["ULVLMForConditionalGeneration"])):
        config = json.loads((results / f"runs/{arch}/prior/900/seed0/pretrain/step4/config.json").read_text())
        assert config["architectures"] == classes and config["text_config"]["model_type"] == "mistral"
        assert config["dtype"] == "bfloat16"
    described = yaml.safe_load((results / "runs/ulvlm/prior/900/seed0/pretrain/run.yaml").read_text())
    assert described["tokens"]["caption_tokens"] >= 900
