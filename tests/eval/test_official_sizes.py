"""Official benchmarks in their full sizes: what is asked and what is scored is what VLMEvalKit makes of those files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval import tsv
from eval.benchmarks import OFFICIAL
from tests.eval import official_tsvs

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit" / "bin" / "python"))
CHECKPOINT = "hlvlm/ntp/7M/seed0/pretrain/step5000"

# Run in VLMEvalKit's environment: its own data sets under their official names, without our reading in between.
# Only its tables of md5 sums are emptied, because these files are stand-ins.
THEIRS = """
import json, os, sys
from pathlib import Path
from eval.vlmevalkit.kit import fresh_folder, kit
modules = kit()
from vlmeval.dataset import build_dataset
here = Path(sys.argv[1])
found = {}
for name in json.loads(sys.argv[2]):
    for known in (modules.yes_no, modules.choice):
        known.DATASET_MD5.pop(name, None)
    with fresh_folder(modules) as folder:
        os.symlink(here / f"{name}.tsv", folder / f"{name}.tsv")
        data = build_dataset(name)
        texts = [part["value"] for row in (0, len(data) // 2, len(data) - 1) for part in data.build_prompt(row)]
        answers = folder / f"model_{name}.tsv"
        answers.write_bytes((here / "predictions" / sys.argv[3] / f"{name}.tsv").read_bytes())
        sheet = data.evaluate(str(answers), model="exact_matching", nproc=1)
        found[name] = {"texts": texts, "sheet": sheet.to_dict("records")}
Path(here, "theirs.json").write_text(json.dumps(found, default=float))
"""
OURS = """
import json, sys
from eval.vlmevalkit.__main__ import main
for name in json.loads(sys.argv[1]):
    file = ["--benchmark", f"{name}.tsv", "--official"]
    assert main(["prompts", *file, "--cache", "cache", "--out", f"{name}.jsonl"]) == 0
    answers = ["--predictions", "predictions", "--checkpoint", sys.argv[2]]
    assert main(["score", *file, *answers, "--metrics", f"{name}.csv", "--items", f"{name}.parquet"]) == 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five files, an answer to every question, and both ways of asking and scoring."""
    here = tmp_path_factory.mktemp("official")
    rng = np.random.default_rng(3)
    for name in OFFICIAL:
        frame = tsv.read_benchmark(official_tsvs.write(name, here))
        wrong = np.where(frame["answer"] == "Yes", "No", "Yes") if "A" not in frame else "A"
        given = np.where(rng.random(len(frame)) < 0.8, frame["answer"], wrong)
        given = np.where(rng.random(len(frame)) < 0.05, rng.choice(["", "None", "NA", "a\tb\nc", "不知道"]), given)
        tsv.write_predictions(frame.assign(prediction=given), here / "predictions" / CHECKPOINT / f"{name}.tsv")
    names = json.dumps(OFFICIAL)
    for call in ([OURS, names, CHECKPOINT], [THEIRS, str(here), names, CHECKPOINT]):
        done = subprocess.run([PYTHON, "-c", *call], cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    return here


@pytest.mark.parametrize("name", OFFICIAL)
def test_scores_are_those_of_vlmevalkit_under_the_official_name(name: str, folder: Path) -> None:
    sheet = pd.DataFrame(json.loads((folder / "theirs.json").read_text())[name]["sheet"])
    metrics = pd.read_csv(folder / f"{name}.csv").set_index("metric")
    value = metrics.value
    if name == "MME":
        assert 0 < value["perception"] == sheet.perception[0] and 0 < value["reasoning"] == sheet.reasoning[0]
        assert metrics.n_items["perception"] + metrics.n_items["reasoning"] == 2374
    elif name == "POPE":
        for row in sheet.to_dict("records"):
            suffix = "" if row["split"] == "Overall" else f"_{row['split']}"
            for metric, column in {"f1": "Overall", "accuracy": "acc", "recall": "recall"}.items():
                assert value[metric + suffix] == row[column]
        assert metrics.n_items["f1"] == 9000 and metrics.n_items["f1_popular"] == 3000
    else:
        (overall,) = sheet[sheet.split.isin(["none", "dev"])].Overall if "split" in sheet else sheet.Overall
        assert 0 < value["accuracy"] == 100 * overall < 100
        assert metrics.n_items["accuracy"] == {"MMBench_DEV_EN": 1164, "MMStar": 1500, "SEEDBench_IMG": 14232}[name]
    # What the items say adds up to what the sheet says.
    items = pd.read_parquet(folder / f"{name}.parquet")
    right = items.groupby("group").correct.all() if "MMBench" in name else items.correct
    assert 100 * right.mean() == pytest.approx(value["accuracy"], abs=0.01)


@pytest.mark.parametrize("name", OFFICIAL)
def test_prompts_are_those_of_vlmevalkit_under_the_official_name(name: str, folder: Path) -> None:
    ours = [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    theirs = json.loads((folder / "theirs.json").read_text())[name]["texts"][1::2]
    assert [ours[0], ours[len(ours) // 2], ours[-1]] == theirs
