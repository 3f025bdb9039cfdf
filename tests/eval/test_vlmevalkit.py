"""VLMEvalKit's scores against a recomputation of a few lines, on answers whose right reading is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from eval import tsv
from eval.results import ITEM_COLUMNS, METRIC_COLUMNS, read_items
from eval.vlmevalkit import fresh_folder, main, parse_checkpoint
from prior.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit" / "bin" / "python"))
FINAL = "hlvlm/ntp/40k/seed0/tuned/final"
STEP = "ulvlm/prior-a0.5/1.5M/seed3/pretrain/step20"
BASELINE = "baseline/always_A/seed0"

# How the answers a model may give are read: by the rules of exact matching, not by running them.
YES_NO = {
    **dict.fromkeys(["Yes", "yes", "YES.", "Yes, it is", "well\tyes\nindeed", '"yes"'], "Yes"),
    **dict.fromkeys(["No", "no!", "No, there is none", "(no)"], "No"),
    **dict.fromkeys(["", "None", "NA", "maybe", "yes and no", "yesno", "not"], ""),
}
OPTIONS = ["red circle", "Blue square", "green, small star", "7 dots"]
LETTER = {**{f"{p}{c}{s}": c for c in "ABCD" for p, s in [("", ""), ("", "."), ("(", ")"), ("so:\t", "\nok")]}}
NOTHING = ["", "None", "NA", "nan", "A or B", "a", "red circle 7 dots", "circle", "Z"]


def yes_no_answers(rng: np.random.Generator, rows: int) -> tuple[list[str], list[str]]:
    answers = [str(answer) for answer in rng.choice(list(YES_NO), rows)]
    return answers, [YES_NO[answer] for answer in answers]


def choice_answers(rng: np.random.Generator, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    answers, read = [], []
    for _, row in frame.iterrows():
        options = tsv.options(row)
        letter = str(rng.choice(list(options)))
        if rng.random() < 0.6:  # often right, so that all rotations of a question can be
            letter = row["answer"]
        kind = rng.integers(4)
        if kind == 0:
            written = str(rng.choice([text for text, meant in LETTER.items() if meant == letter]))
        elif kind == 1:
            written = options[letter]
        elif kind == 2:
            written = f"it is\nthe {options[letter].upper()} of course"
        else:
            written, letter = str(rng.choice(NOTHING)), ""
        if rng.random() < 0.5 and letter == "" and frame.shape[1] > 8:
            written, letter = options[row["answer"]], row["answer"]
        answers.append(written)
        read.append(letter)
    return answers, read


def make_benchmarks(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    categories = ["existence", "count", "numerical_calculation"]
    mme = pd.DataFrame(
        [(categories[i % 3], f"{i}.png", answer) for i in range(30) for answer in ("Yes", "No")],
        columns=["category", "image_path", "answer"],
    )
    pope = pd.DataFrame({"category": rng.choice(["random", "popular", "adversarial", "random,popular"], 60)})
    pope["answer"] = rng.choice(["Yes", "No"], 60)
    pope["image_path"] = [f"{row // 3}.png" for row in range(60)]
    farm = pope.drop(columns="category")
    choice = pd.DataFrame([rng.permutation(OPTIONS) for _ in range(40)], columns=list("ABCD"))
    choice["answer"] = rng.choice(list("ABCD"), 40)
    choice.loc[::7, "D"] = ""  # three options only
    choice.loc[choice["D"] == "", "answer"] = "A"
    choice["hint"] = ["Look\tclosely." if row % 2 else "" for row in range(40)]
    choice["image_path"] = [f"{row // 2}.png" for row in range(40)]
    choice["split"] = ["dev", "test"] * 20
    rotated = []
    for question in range(1, 31):
        texts = list(rng.permutation(OPTIONS))
        for turn in range(4):
            row = dict(zip("ABCD", np.roll(texts, turn), strict=True))
            rotated.append({"index": str(question + turn * 10**6), **row, "answer": "ABCD"[turn], "category": "shape"})
    frames = {"MME": mme, "POPE": pope, "Farm": farm, "Zoo": choice, "MMBench": pd.DataFrame(rotated)}
    for name, frame in frames.items():
        if name != "MMBench":
            frame["index"] = [str(row) for row in range(len(frame))]
        frame["question"] = "What is\t'this'?"
        frame["image"] = "never opened, " * 9
    return frames


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three checkpoints scored, then once more in the same process after one answer was changed."""
    folder = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(5)
    frames = make_benchmarks(rng)
    read: dict[tuple[str, str, str], list[str]] = {}
    (folder / "benchmarks").mkdir()
    run = folder / "runs" / Path(FINAL).parent
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("steps: 33\n")
    for name, frame in frames.items():
        frame.to_csv(folder / "benchmarks" / f"{name}.tsv", sep="\t", index=False)
        for checkpoint, suffixes in {FINAL: ["", ".no_picture"], STEP: [""], BASELINE: [""]}.items():
            for suffix in suffixes:
                if checkpoint == BASELINE:
                    if "A" not in frame:
                        continue
                    answers = known = ["A"] * len(frame)
                else:
                    answers, known = choice_answers(rng, frame) if "A" in frame else yes_no_answers(rng, len(frame))
                # Another order than the benchmark's: rows are matched by their index.
                table = frame.assign(prediction=answers).sample(frac=1, random_state=1)
                tsv.write_predictions(table, folder / "predictions" / checkpoint / f"{name}{suffix}.tsv")
                read[checkpoint, name, suffix] = known
    changed = folder / "predictions" / STEP / "POPE.tsv"
    other = tsv.read_benchmark(changed)
    flipped = other["answer"].map({"Yes": "No", "No": "Yes"})
    tsv.write_predictions(other.assign(prediction=flipped), folder / "other.tsv")
    arguments = ["score", "--benchmarks", "benchmarks", "--predictions", "predictions", "--runs", "runs"]
    every = [part for checkpoint in (FINAL, STEP, BASELINE) for part in ("--checkpoint", checkpoint)]
    only = ["--checkpoint", STEP, "--benchmark", "POPE"]
    calls = [
        [*arguments, *every, "--metrics", "metrics.csv", "--items", "items.parquet"],
        [*arguments, *every, "--metrics", "again.csv", "--items", "again.parquet"],
        ["prompts", "--benchmark", "benchmarks/Zoo.tsv", "--out", "Zoo.jsonl"],
        ["prompts", "--benchmark", "benchmarks/POPE.tsv", "--out", "POPE.jsonl"],
        [*arguments, *only, "--metrics", "changed.csv", "--items", "changed.parquet"],
    ]
    driver = (
        "import json, shutil, sys\nfrom eval.vlmevalkit import main\n"
        "for number, call in enumerate(json.loads(sys.argv[1])):\n"
        f"    if number == 4: shutil.copy('other.tsv', 'predictions/{STEP}/POPE.tsv')\n"
        "    assert main(call) == 0, call\n"
    )
    assert Path(PYTHON).is_file(), f"{PYTHON} is missing: run `bash envs/vlmevalkit.sh .venv .venv-vlmevalkit`"
    done = subprocess.run([PYTHON, "-c", driver, json.dumps(calls)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, frames=frames, read=read, metrics=_metrics(folder / "metrics.csv"))


def _metrics(path: Path) -> pd.Series:
    keys = ["arch", "picture", "benchmark", "metric"]
    return pd.read_csv(path).set_index(keys)["value"]


def f1(truth: np.ndarray, yes: np.ndarray) -> tuple[float, float, float]:
    precision, recall = (truth & yes).sum() / yes.sum(), (truth & yes).sum() / truth.sum()
    return 200 * precision * recall / (precision + recall), 100 * precision, 100 * recall


def recompute(name: str, frame: pd.DataFrame, read: list[str]) -> dict[str, float]:
    frame = frame.assign(read=read, hit=frame["answer"] == read)
    wanted = {"unparsed": 100 * np.mean([letter == "" for letter in read])}
    choices = frame[list("ABCD")].ne("").sum(axis=1) if "A" in frame else pd.Series([2])
    wanted["chance"] = 100 * (1 / choices).mean()
    if name in ("MME", "POPE", "Farm"):
        wanted["yes_rate"] = 100 * np.mean([letter == "Yes" for letter in read])
    if name == "MMBench":
        question = frame["index"].astype(int) % 10**6
        wanted["accuracy"] = 100 * frame["hit"].groupby(question).min().mean()
        wanted["vanilla_accuracy"] = 100 * frame["hit"].mean()
    elif name == "POPE":
        every = frame.assign(category=frame["category"].str.split(",")).explode("category")
        parts = {"": every, **{f"_{split}": rows for split, rows in every.groupby("category")}}
        for suffix, rows in parts.items():
            scores = f1((rows["answer"] == "Yes").to_numpy(), (rows["read"] == "Yes").to_numpy())
            wanted |= dict(zip([f"{m}{suffix}" for m in ("f1", "precision", "recall")], scores, strict=True))
            wanted[f"accuracy{suffix}"] = 100 * rows["hit"].mean()
    else:
        wanted["accuracy"] = 100 * frame["hit"].mean()
    if name == "MME":
        pairs = frame.groupby(["category", "image_path"])["hit"].min()
        points = 100 * frame.groupby("category")["hit"].mean() + 100 * pairs.groupby("category").mean()
        wanted["accuracy_plus"] = 100 * pairs.mean()
        wanted["perception"] = points["existence"] + points["count"]
        wanted["reasoning"] = points["numerical_calculation"]
    return wanted


def test_metrics_equal_an_independent_recomputation(scored: SimpleNamespace) -> None:
    wanted = {}
    for (checkpoint, name, suffix), read in scored.read.items():
        arch = checkpoint.split("/")[0]
        picture = "without" if suffix or arch == "baseline" else "with"
        for metric, value in recompute(name, scored.frames[name], read).items():
            wanted[arch, picture, name, metric] = value
    assert set(scored.metrics.index) == set(wanted)
    for key, value in wanted.items():
        assert scored.metrics[key] == pytest.approx(value, abs=1e-9), key
    # Random answers must not leave a score at its floor, where every wrong formula gives the same.
    assert 0 < scored.metrics["hlvlm", "with", "MMBench", "accuracy"] < 100


def test_items_hold_what_was_read_and_keys_are_those_of_the_checkpoint(scored: SimpleNamespace) -> None:
    items = read_items(scored.folder / "items.parquet")
    metrics = pd.read_csv(scored.folder / "metrics.csv")
    assert list(metrics.columns) == METRIC_COLUMNS and list(items.columns) == ITEM_COLUMNS
    for (checkpoint, name, suffix), read in scored.read.items():
        keys = parse_checkpoint(checkpoint, scored.folder / "runs")
        picture = "without" if suffix or keys["arch"] == "baseline" else "with"
        rows = items[(items.arch == keys["arch"]) & (items.picture == picture) & (items.benchmark == name)]
        frame = scored.frames[name]
        assert list(rows["parsed"]) == read
        assert list(rows["item"]) == list(frame["index"])
        assert list(rows["correct"]) == list(frame["answer"] == read)
        assert (rows[list(keys)] == pd.Series(keys)).all(axis=None)
    assert set(metrics[metrics.arch == "hlvlm"].step) == {33}
    assert set(items[items.benchmark == "MMBench"].group) == {str(question) for question in range(1, 31)}
    # Answers are kept to the letter.
    assert {"", "None", "NA", "well\tyes\nindeed"} <= set(items.prediction)
    counted = (
        metrics[(metrics.benchmark == "MMBench") & (metrics.picture == "with")].set_index(["arch", "metric"]).n_items
    )
    assert counted["hlvlm", "accuracy"] == 30 and counted["hlvlm", "vanilla_accuracy"] == 120


def test_same_answers_same_bytes_and_other_answers_another_score(scored: SimpleNamespace) -> None:
    for first, second in (("metrics.csv", "again.csv"), ("items.parquet", "again.parquet")):
        assert (scored.folder / first).read_bytes() == (scored.folder / second).read_bytes()
    assert scored.metrics["ulvlm", "with", "POPE", "accuracy"] > 0
    assert _metrics(scored.folder / "changed.csv")["ulvlm", "with", "POPE", "accuracy"] == 0


def test_prompts_are_vlmevalkits(scored: SimpleNamespace) -> None:
    lines = [json.loads(line) for line in (scored.folder / "Zoo.jsonl").read_text().splitlines()]
    frame = scored.frames["Zoo"]
    assert [line["index"] for line in lines] == list(frame["index"])
    for line, (_, row) in zip(lines, frame.iterrows(), strict=True):
        options = "".join(f"{letter}. {row[letter]}\n" for letter in "ABCD" if row[letter])
        hint = f"Hint: {row['hint']}\n" if row["hint"] else ""
        asked = f"{hint}Question: {row['question']}\nOptions:\n{options}"
        assert line["text"] == asked + "Please select the correct answer from the options above. \n"
    lines = [json.loads(line) for line in (scored.folder / "POPE.jsonl").read_text().splitlines()]
    assert {line["text"] for line in lines} == {"What is\t'this'?"} and len(lines) == 60


@pytest.fixture
def copy(scored: SimpleNamespace, tmp_path: Path) -> Path:
    for part in ("benchmarks", "predictions", "runs"):
        shutil.copytree(scored.folder / part, tmp_path / part)
    return tmp_path


def _edit(path: Path, column: str, value: str) -> None:
    frame = tsv.read_benchmark(path)
    frame.loc[0, column] = value
    frame.to_csv(path, sep="\t", index=False)


MISTAKES = {
    "missing answers": (
        lambda f: (f / f"predictions/{FINAL}/MME.tsv").unlink(),
        "MME.tsv: there is no such file; predict",
    ),
    "asked without pictures in part": (
        lambda f: (f / f"predictions/{FINAL}/Zoo.no_picture.tsv").unlink(),
        "Zoo.no_picture.tsv: there is no such file; predict",
    ),
    "a row more": (
        lambda f: _edit(f / f"predictions/{FINAL}/MME.tsv", "index", "999"),
        "its 60 rows are not the 60 of the benchmark, once each; predict again",
    ),
    "another question": (
        lambda f: _edit(f / f"predictions/{FINAL}/MME.tsv", "question", "Why?"),
        "'question' is not the benchmark's any more; predict again",
    ),
    "broken benchmark": (lambda f: _edit(f / "benchmarks/Zoo.tsv", "answer", "E"), "the answer 'E' is none of"),
    "no run.yaml": (lambda f: shutil.rmtree(f / "runs"), "run.yaml: there is no such file; train the run first"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_write_nothing(
    mistake: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = MISTAKES[mistake]
    spoil(copy)
    # The mistake must be found before the long import.
    monkeypatch.setattr("eval.vlmevalkit.kit", lambda: pytest.fail("VLMEvalKit was imported"))
    folders = [part for name in ("benchmarks", "predictions", "runs") for part in (f"--{name}", str(copy / name))]
    outputs = ["--metrics", str(copy / "out" / "m.csv"), "--items", str(copy / "out" / "i.parquet")]
    assert main(["score", *folders, "--checkpoint", FINAL, *outputs]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (copy / "out").exists()


@pytest.mark.parametrize("name", ["hlvlm/ntp/40k/seed0/tuned", "hlvlm/ntp/much/seed0/tuned/final", "random/seed0"])
def test_a_checkpoint_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"checkpoint '{name}'"):
        parse_checkpoint(name, None)


def test_the_main_environment_has_no_torchvision() -> None:
    """With it, transformers would take other image processors, and pixels would differ."""
    with pytest.raises(ModuleNotFoundError):
        import torchvision  # noqa: F401


def test_each_scoring_has_a_folder_of_its_own_for_all_that_vlmevalkit_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "LMUData"
    monkeypatch.setenv(data, "before")
    modules = SimpleNamespace(mcq=SimpleNamespace(timestr=lambda: "20260101000000"))
    with fresh_folder(modules) as one, fresh_folder(modules) as other:
        # As circular scoring makes up the name of its temporary file.
        temporary = Path(f"/tmp/{modules.mcq.timestr()}.tsv")
        temporary.touch()
        assert one != other and [path.resolve() for path in other.iterdir()] == [temporary.resolve()]
        assert {os.environ[name] for name in ("LMUData", "TMPDIR")} == {str(other)}
    assert os.environ.get(data) == "before" and modules.mcq.timestr() == "20260101000000"
    assert not one.exists() and not other.exists()
