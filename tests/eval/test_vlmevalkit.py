"""VLMEvalKit's scores against a recomputation of a few lines, on answers whose right reading is known."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval import tsv
from eval.checkpoints import parse_checkpoint
from eval.degenerate import degenerate
from eval.results import ITEM_COLUMNS, METRIC_COLUMNS, read_items
from eval.vlmevalkit.__main__ import main
from eval.vlmevalkit.kit import fresh_folder
from prior.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit" / "bin" / "python"))
FINAL = "hlvlm/ntp/40k/seed0/tuned/final"
STEP = "ulvlm/prior-a0.5/1.5M/seed3/pretrain/step20"
DEGENERATE = "baseline/{}/seed{}"

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
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    frames = {"MME": mme, "POPE": pope, "Farm": farm, "Zoo": choice, "MMBench": pd.DataFrame(rotated)}
    for name, frame in frames.items():
        if name != "MMBench":
            frame["index"] = [str(row) for row in range(len(frame))]
        frame["question"] = "What is\t'this'?"
        frame["image"] = picture
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
        for kind, seed, answers in degenerate(frame, 2):
            read[DEGENERATE.format(kind, seed), name, ""] = answers
        # A checkpoint on the way is asked with pictures alone.
        for checkpoint, suffix in ((FINAL, ""), (FINAL, ".no_picture"), (STEP, "")):
            answers, known = choice_answers(rng, frame) if "A" in frame else yes_no_answers(rng, len(frame))
            # Another order than the benchmark's: rows are matched by their index.
            table = frame.assign(prediction=answers).sample(frac=1, random_state=1)
            tsv.write_predictions(table, folder / "predictions" / checkpoint / f"{name}{suffix}.tsv")
            read[checkpoint, name, suffix] = known
    other = tsv.read_benchmark(folder / "predictions" / STEP / "POPE.tsv")
    flipped = other["answer"].map({"Yes": "No", "No": "Yes"})
    tsv.write_predictions(other.assign(prediction=flipped), folder / "other.tsv")
    every = ["--checkpoint", FINAL, "--checkpoint", STEP, "--no-picture", "--degenerate", "2"]
    calls = [score_call(name, f"{name}{again}", *every) for name in frames for again in ("", "-again")]
    calls += [
        ["prompts", "--benchmark", f"benchmarks/{name}.tsv", "--cache", "cache", "--out", f"{name}.jsonl"]
        for name in ("Zoo", "POPE")
    ]
    calls.append(score_call("POPE", "changed", "--checkpoint", STEP))
    driver = (
        "import json, shutil, sys\nfrom eval.vlmevalkit.__main__ import main\n"
        "for call in json.loads(sys.argv[1]):\n"
        f"    if 'changed.csv' in call: shutil.copy('other.tsv', 'predictions/{STEP}/POPE.tsv')\n"
        "    assert main(call) == 0, call\n"
    )
    assert Path(PYTHON).is_file(), f"{PYTHON} is missing: run `bash envs/vlmevalkit.sh .venv .venv-vlmevalkit`"
    done = subprocess.run([PYTHON, "-c", driver, json.dumps(calls)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = pd.concat([_metrics(folder / f"{name}.csv") for name in frames])
    return SimpleNamespace(folder=folder, frames=frames, read=read, metrics=metrics)


def score_call(name: str, out: str, *more: str) -> list[str]:
    """Arguments that score answers to a benchmark into `out`.csv and `out`.parquet."""
    places = ["--benchmark", f"benchmarks/{name}.tsv", "--predictions", "predictions", "--runs", "runs"]
    return ["score", *places, *more, "--metrics", f"{out}.csv", "--items", f"{out}.parquet"]


def _metrics(path: Path) -> pd.Series:
    keys = ["arch", "objective", "seed", "picture", "benchmark", "metric"]
    return pd.read_csv(path).set_index(keys)["value"]


def _keys(checkpoint: str, folder: Path) -> dict[str, Any]:
    """The keys of a checkpoint, or of answers that need none."""
    if not checkpoint.startswith("baseline/"):
        return parse_checkpoint(checkpoint, folder / "runs")
    _, kind, seed = checkpoint.split("/")
    keys = {"arch": "baseline", "objective": kind, "scale_tokens": 0, "seed": int(seed.removeprefix("seed"))}
    return keys | {"stage": "none", "step": 0}


def f1(truth: np.ndarray, yes: np.ndarray) -> tuple[float, float, float]:
    if not yes.any():
        return 0, 0, 0
    precision, recall = (truth & yes).sum() / yes.sum(), (truth & yes).sum() / truth.sum()
    return 200 * precision * recall / (precision + recall), 100 * precision, 100 * recall


def recompute(name: str, frame: pd.DataFrame, read: list[str]) -> dict[str, float]:
    frame = frame.assign(read=read, hit=frame["answer"] == read)
    if name == "POPE":  # a row counts once in each of its splits
        frame = frame.assign(category=frame["category"].str.split(",")).explode("category")
    wanted = {"unparsed": 100 * (frame["read"] == "").mean()}
    choices = frame[list("ABCD")].ne("").sum(axis=1) if "A" in frame else pd.Series([2])
    wanted["chance"] = 100 * (1 / choices).mean()
    if name in ("MME", "POPE", "Farm"):
        wanted["yes_rate"] = 100 * (frame["read"] == "Yes").mean()
    if name == "MMBench":
        question = frame["index"].astype(int) % 10**6
        wanted["accuracy"] = 100 * frame["hit"].groupby(question).min().mean()
        wanted["vanilla_accuracy"] = 100 * frame["hit"].mean()
    elif name == "POPE":
        parts = {"": frame, **{f"_{split}": rows for split, rows in frame.groupby("category")}}
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
        keys = _keys(checkpoint, scored.folder)
        picture = "without" if suffix or keys["arch"] == "baseline" else "with"
        for metric, value in recompute(name, scored.frames[name], read).items():
            wanted[keys["arch"], keys["objective"], keys["seed"], picture, name, metric] = value
    assert set(scored.metrics.index) == set(wanted) and scored.metrics.index.is_unique
    for key, value in wanted.items():
        assert scored.metrics[key] == pytest.approx(value, abs=1e-9), key
    # Random answers must not leave a score at its floor, where every wrong formula gives the same.
    assert 0 < scored.metrics["hlvlm", "ntp", 0, "with", "MMBench", "accuracy"] < 100


def test_items_hold_what_was_read_and_keys_are_those_of_the_checkpoint(scored: SimpleNamespace) -> None:
    seen: set[str] = set()
    for (checkpoint, name, suffix), read in scored.read.items():
        items = read_items(scored.folder / f"{name}.parquet")
        metrics = pd.read_csv(scored.folder / f"{name}.csv")
        assert list(metrics.columns) == METRIC_COLUMNS and list(items.columns) == ITEM_COLUMNS
        keys = _keys(checkpoint, scored.folder)
        keys["picture"] = "without" if suffix or keys["arch"] == "baseline" else "with"
        keys["benchmark"] = name
        rows = items[(items[list(keys)] == pd.Series(keys)).all(axis=1)]
        frame = scored.frames[name].assign(read=read)
        if name == "POPE":
            frame = frame.assign(category=frame["category"].str.split(",")).explode("category")
            assert list(rows["category"]) == list(frame["category"])
        assert list(rows["parsed"]) == list(frame["read"])
        assert list(rows["item"]) == list(frame["index"])
        assert list(rows["correct"]) == list(frame["answer"] == frame["read"])
        assert set(metrics[metrics.arch == "hlvlm"].step) == {33}
        if name == "MMBench":
            assert set(rows.group) == {str(question) for question in range(1, 31)}
            counted = metrics[(metrics.arch == "hlvlm") & (metrics.picture == "with")].set_index("metric").n_items
            assert counted["accuracy"] == 30 and counted["vanilla_accuracy"] == 120
        seen |= set(rows.prediction)
    # Answers are kept to the letter.
    assert {"", "None", "NA", "well\tyes\nindeed"} <= seen


def test_same_answers_same_bytes_and_other_answers_another_score(scored: SimpleNamespace) -> None:
    for name in scored.frames:
        for ending in ("csv", "parquet"):
            again = scored.folder / f"{name}-again.{ending}"
            assert (scored.folder / f"{name}.{ending}").read_bytes() == again.read_bytes()
    key = ("ulvlm", "prior-a0.5", 3, "with", "POPE", "accuracy")
    assert scored.metrics[key] > 0
    assert _metrics(scored.folder / "changed.csv")[key] == 0


def test_three_scorings_at_once_do_not_disturb_each_other(scored: SimpleNamespace, copy: Path) -> None:
    """Each scores other answers to the same circular benchmark, all in the same seconds."""
    driver = (
        "import json, sys\nfrom eval.vlmevalkit import kit\nfrom eval.vlmevalkit.__main__ import main\n"
        "kit.kit()\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "for call in json.loads(sys.argv[1]): assert main(call) == 0\n"
    )
    answers = {(checkpoint, suffix) for checkpoint, name, suffix in scored.read if not checkpoint.startswith("base")}
    waiting = []
    for number, (checkpoint, suffix) in enumerate(sorted(answers)):
        mine = copy / f"predictions{number}" / STEP / "MMBench.tsv"
        mine.parent.mkdir(parents=True)
        shutil.copy(copy / "predictions" / checkpoint / f"MMBench{suffix}.tsv", mine)
        calls = [score_call("MMBench", f"{number}-{again}", "--checkpoint", STEP) for again in range(3)]
        for call in calls:
            call[call.index("predictions")] = f"predictions{number}"
        process = subprocess.Popen(
            [PYTHON, "-c", driver, json.dumps(calls)], cwd=copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        waiting.append(
            (process, recompute("MMBench", scored.frames["MMBench"], scored.read[checkpoint, "MMBench", suffix]))
        )
    assert len(waiting) == 3
    for process, _ in waiting:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    for process, _ in waiting:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for number, (process, wanted) in enumerate(waiting):
        assert process.wait() == 0
        for again in range(3):
            found = pd.read_csv(copy / f"{number}-{again}.csv").set_index("metric").value
            assert {metric: found[metric] for metric in wanted} == pytest.approx(wanted, abs=1e-9)
    assert len({json.dumps(wanted) for _, wanted in waiting}) == 3


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
        "MME",
        lambda f: (f / f"predictions/{FINAL}/MME.tsv").unlink(),
        "MME.tsv: there is no such file; make",
    ),
    "not asked without pictures": (
        "Zoo",
        lambda f: (f / f"predictions/{FINAL}/Zoo.no_picture.tsv").unlink(),
        "Zoo.no_picture.tsv: there is no such file; make",
    ),
    "a row more": (
        "MME",
        lambda f: _edit(f / f"predictions/{FINAL}/MME.tsv", "index", "999"),
        "its 60 rows are not the 60 of the benchmark, once each; predict again",
    ),
    "another question": (
        "MME",
        lambda f: _edit(f / f"predictions/{FINAL}/MME.tsv", "question", "Why?"),
        "'question' is not the benchmark's any more; predict again",
    ),
    "broken benchmark": ("Zoo", lambda f: _edit(f / "benchmarks/Zoo.tsv", "answer", "E"), "the answer 'E' is none of"),
    "no run.yaml": ("MME", lambda f: shutil.rmtree(f / "runs"), "run.yaml: there is no such file; train the run first"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_write_nothing(
    mistake: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, said = MISTAKES[mistake]
    spoil(copy)
    monkeypatch.chdir(copy)
    # The mistake must be found before the long import.
    monkeypatch.setattr("eval.vlmevalkit.score.kit", lambda: pytest.fail("VLMEvalKit was imported"))
    assert main(score_call(name, "out/scores", "--checkpoint", FINAL, "--no-picture")) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (copy / "out").exists()


@pytest.mark.parametrize(
    "name", ["hlvlm/ntp/40k/seed0/tuned", "hlvlm/ntp/much/seed0/tuned/final", "baseline/random/seed0"]
)
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
    modules = SimpleNamespace(mcq=SimpleNamespace(timestr=lambda: "20260101000000", track_progress_rich=None))
    with fresh_folder(modules) as one, fresh_folder(modules) as other:
        # As circular scoring makes up the name of its temporary file.
        temporary = Path(f"/tmp/{modules.mcq.timestr()}.tsv")
        temporary.touch()
        assert one != other and [path.resolve() for path in other.iterdir()] == [temporary.resolve()]
        assert {os.environ[name] for name in ("LMUData", "TMPDIR")} == {str(other)}
    assert os.environ.get(data) == "before" and modules.mcq.timestr() == "20260101000000"
    assert not one.exists() and not other.exists()
