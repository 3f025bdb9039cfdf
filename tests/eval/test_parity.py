"""Our batched loop and VLMEvalKit's own: the same predictions, the same scores, and padding that changes nothing."""

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

from eval.answers import Answers
from eval.benchmarks import maker, write_tsv
from eval.predict import Model, Questions, load_model, predict, reply
from eval.tsv import read_benchmark, write_predictions
from eval.vlmevalkit.__main__ import main
from prior import config, models, runs
from prior.backbones import new_llm, train_tokenizer
from prior.corpus.questions import tuning_questions
from prior.corpus.scenes import pairs
from prior.documents import tokenize_exchanges

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit/bin/python"))
ARCHITECTURES = ("hlvlm", "ulvlm")
# Those of the default preset, with fewer items.
ITEMS = {"MME": 28, "POPE": 24, "MMBench": 12, "MMStar": 24, "SEEDBench": 24}
EVALUATION = config.Evaluation(batch_size=10)
DRIVER = (
    "import json, sys; from eval.vlmevalkit.__main__ import main; "
    "print(json.dumps([main(call) for call in json.loads(sys.argv[1])]))"
)


def checkpoint(arch: str) -> str:
    return f"{arch}/ntp/3k/seed0/tuned/final"


def vlmevalkit(*calls: list[str]) -> tuple[list[int], list[str]]:
    """Exit codes and error lines of several commands of ``eval.vlmevalkit``, in one process: importing it is slow."""
    done = subprocess.run([PYTHON, "-c", DRIVER, json.dumps(calls)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), [
        line for line in done.stderr.splitlines() if line.startswith("error: ")
    ]


def train_small(folder: Path, vision: Path) -> None:
    """LVLMs of both architectures that have learned in seconds how questions are answered, if seldom rightly."""
    asked = list(tuning_questions(600, 0, 60, 0))
    pictures = {pair["id"]: pair["image"] for pair in pairs("train", 0, 60, 0, 48)}
    tokenizer = train_tokenizer(
        [item["prompt"] + item["answer"] for item in asked], config.ScratchTokenizer(vocab_size=600)
    )
    new_llm(config.ScratchLLM(layers=2, intermediate_size=128), tokenizer).save_pretrained(folder / "llm")
    documents = tokenize_exchanges(
        [str(number) for number in range(len(asked))],
        [[(item["prompt"], item["answer"])] for item in asked],
        tokenizer,
        lambda index: pictures[asked[index]["id"]],
    )
    recipe = config.Training(learning_rate=3e-3, row_tokens=512, epochs=4)
    preset = config.Preset(name="test", tune=config.Tune(training=recipe))
    for arch in ARCHITECTURES:
        run = config.Run(arch, "ntp", "3k", 0)
        new = folder / arch / "new"
        models.build(arch, getattr(preset.architectures, arch), tokenizer, folder / "llm", vision, 0).save(new)
        tuned = (folder / "runs" / checkpoint(arch)).parent
        runs.tune(run, preset, new, tokenizer, documents, tuned, folder / arch / "state", {})


def foreign(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A benchmark of another's: pictures of all sizes under JPEG names, gaps in its numbers, three options, hints."""
    frame = pd.DataFrame(rows)
    rng = np.random.default_rng(0)
    images = []
    for encoded in frame["image"]:
        stream = io.BytesIO()
        width, height = map(int, rng.integers(20, 90, 2))
        Image.open(io.BytesIO(base64.b64decode(encoded))).resize((width, height)).save(stream, "PNG")
        images.append(base64.b64encode(stream.getvalue()).decode())
    frame = frame.assign(image=images, index=7 + 3 * frame["index"], hint=["", "Look\tclosely.", "看"] * 8)
    frame["image_path"] = [f"shelf/{row}.jpg" for row in range(len(frame))]
    frame.loc[frame["answer"] != "D", "D"] = ""
    return frame


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, vision: Path) -> SimpleNamespace:
    """Every benchmark answered by both architectures in both loops, and scored in both ways."""
    folder = tmp_path_factory.mktemp("parity")
    train_small(folder, vision)
    for name, items in ITEMS.items():
        write_tsv(maker(name).rows(items, 0, 0, 48), folder / "benchmarks" / f"{name}.tsv")
    write_tsv(foreign(maker("MMStar").rows(24, 1, 0, 48)), folder / "benchmarks/Shelf.tsv")
    names = [*ITEMS, "Shelf"]
    files = {name: folder / "benchmarks" / f"{name}.tsv" for name in names}

    def run(arch: str, work_dir: str, *more: str, benchmarks: Path = folder / "benchmarks") -> list[str]:
        call = ["run", "--checkpoint", str(folder / "runs" / checkpoint(arch)), "--benchmarks", str(benchmarks)]
        return [*call, "--name", arch, "--work-dir", str(folder / work_dir), *more]

    every = [part for name in names for part in ("--benchmark", name)]
    exports = [
        ["prompts", "--benchmark", str(path), "--cache", str(folder / "kept"), "--out", str(path.with_suffix(".jsonl"))]
        for path in files.values()
    ]
    codes, errors = vlmevalkit(*exports, *(run(arch, "theirs", *every) for arch in ARCHITECTURES))
    assert set(codes) == {0}, errors

    for arch in ARCHITECTURES:
        model = load_model(folder / "runs" / checkpoint(arch))
        for name, path in files.items():
            questions = Questions.read(path, path.with_suffix(".jsonl"), "generate")
            for suffix in ("", ".no_picture"):
                answers = Answers(folder / "state" / arch / f"{name}{suffix}.jsonl", "key")
                answered = predict(model, questions, not suffix, EVALUATION, answers)
                write_predictions(answered, folder / "predictions" / checkpoint(arch) / f"{name}{suffix}.tsv")

    wrong = folder / "wrong"
    shutil.copytree(folder / "predictions" / checkpoint("hlvlm"), wrong)
    answered = read_benchmark(wrong / "POPE.tsv")
    write_predictions(answered.iloc[1:], wrong / "POPE.tsv")
    answered = read_benchmark(wrong / "MMStar.tsv")
    write_predictions(answered.assign(index="99999"), folder / "more.tsv")
    write_predictions(pd.concat([answered, read_benchmark(folder / "more.tsv")]), wrong / "MMStar.tsv")

    scores = [
        ["score", "--benchmark", str(path), "--predictions", str(folder / "predictions")]
        + [part for arch in ARCHITECTURES for part in ("--checkpoint", checkpoint(arch))]
        + ["--runs", str(folder / "runs"), "--metrics", str(folder / f"{name}.csv")]
        + ["--items", str(folder / f"{name}.parquet")]
        for name, path in files.items()
    ]
    again = [
        run(arch, "ours", *every, "--predictions", str(folder / "predictions" / checkpoint(arch)))
        for arch in ARCHITECTURES
    ]
    mistakes = [
        run("hlvlm", "a", "--benchmark", "MME", "--benchmark", "POPE", "--predictions", str(wrong)),
        run("hlvlm", "b", "--benchmark", "MMStar", "--predictions", str(wrong)),
        run("hlvlm", "c", "--benchmark", "MME", "--judge", "gpt-4o-mini"),
        run("hlvlm", "d", "--benchmark", "MME", "--conf", "models.json"),
        run("hlvlm", "ours", "--benchmark", "MME"),
    ]
    codes, errors = vlmevalkit(*scores, *again, *mistakes)
    assert set(codes[: -len(mistakes)]) == {0}, errors
    metrics = pd.concat([pd.read_csv(folder / f"{name}.csv") for name in names])
    metrics = metrics.set_index(["arch", "benchmark", "metric"]).value.sort_index()
    return SimpleNamespace(
        folder=folder, names=names, metrics=metrics, codes=codes[-len(mistakes) :], errors=errors, run=run
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_loops_give_identical_predictions(both: SimpleNamespace, arch: str) -> None:
    replies: set[str] = set()
    for name in both.names:
        ours = read_benchmark(both.folder / "predictions" / checkpoint(arch) / f"{name}.tsv")
        blind = read_benchmark(both.folder / "predictions" / checkpoint(arch) / f"{name}.no_picture.tsv")
        theirs = read_benchmark(both.folder / "theirs" / arch / f"{arch}_{name}_local.tsv")
        assert list(ours["index"]) == list(theirs["index"])
        assert list(ours["prediction"]) == list(theirs["prediction"]), name
        # The pictures must have a part in it.
        assert list(blind["prediction"]) != list(theirs["prediction"]), name
        replies |= set(ours["prediction"])
    assert len(replies) > 25


def sheet(path: Path) -> pd.DataFrame:
    """A score sheet of VLMEvalKit's, by split if it has any; their order varies."""
    table = pd.read_csv(path)
    return table.set_index("split").sort_index() if "split" in table else table


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_ways_give_identical_scores(both: SimpleNamespace, arch: str) -> None:
    """Those in VLMEvalKit's own files, after its own loop and of our predictions, are ours to the last digit."""
    scores: list[float] = []
    for name in both.names:
        file = f"{arch}_{name}_local_{'score' if name in ('MME', 'POPE') else 'acc'}.csv"
        theirs, ours = (sheet(both.folder / way / arch / file) for way in ("theirs", "ours"))
        pd.testing.assert_frame_equal(theirs, ours, check_exact=True)
        if name == "MME":
            wanted = {metric: theirs.loc[0, metric] for metric in ("perception", "reasoning")}
        elif name == "POPE":
            columns = {"f1": "Overall", "accuracy": "acc", "precision": "precision", "recall": "recall"}
            wanted = {
                metric if split == "Overall" else f"{metric}_{split}": theirs.loc[split, column]
                for split in theirs.index
                for metric, column in columns.items()
            }
        else:
            wanted = {"accuracy": 100 * theirs.loc["none", "Overall"]}
        assert {metric: both.metrics[arch, name, metric] for metric in wanted} == wanted, name
        scores += wanted.values()
    assert len(set(scores)) > 6


def test_a_failed_data_set_and_foreign_models_end_in_one_line(both: SimpleNamespace) -> None:
    assert both.codes == [2] * 5 and len(both.errors) == 5
    incomplete, failed, judge, models_file, used = both.errors
    assert "POPE_local: VLMEvalKit failed on it (Incomplete infer result); see its log in" in incomplete
    assert "MMStar_local: VLMEvalKit failed on it (" in failed
    assert "--judge: another model, data set or judge; leave it out" in judge
    assert "--config: another" in models_file
    assert "VLMEvalKit would take over the answers that lie there" in used


REFUSED = {
    "likelihood": (["--benchmark", "Shelf"], "Shelf: VLMEvalKit asks for replies, it knows no `answer: likelihood`"),
    "caption": (["--benchmark", "CHAIR"], "CHAIR: VLMEvalKit asks for replies, it knows no `answer: caption`"),
    "unknown": (["--benchmark", "Farm"], "has no entry 'Farm'; add it there"),
    "missing": (["--benchmark", "POPE"], "POPE.tsv: there is no such file"),
    "no predictions": (["--benchmark", "MME", "--predictions", "."], "MME.tsv: there is no such file"),
    "a path for a name": (["--benchmark", "MME", "--name", "a/b"], "--name a/b: VLMEvalKit makes a folder of it"),
    "plain LLM": (["--benchmark", "MME"], "holds no checkpoint of an H-LVLM or a U-LVLM"),
    "captions": (["--benchmark", "Album"], "Album.tsv: VLMEvalKit asks for replies, and knows no captions"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_vlmevalkit_cannot_ask_is_refused_before_it_is_imported(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eval.vlmevalkit.launch.kit", lambda **_: pytest.fail("VLMEvalKit was imported"))
    write_tsv(maker("MME").rows(14, 0, 0, 48), tmp_path / "MME.tsv")
    (tmp_path / "p.yaml").write_text(
        "extends: tiny\nbenchmarks: {MME: {}, POPE: {}, Album: {}, "
        "Shelf: {answer: likelihood}, CHAIR: {answer: caption}}\n"
    )
    write_tsv(maker("CHAIR").rows(4, 0, 0, 48), tmp_path / "Album.tsv")
    (tmp_path / "config.json").write_text('{"model_type": "%s"}' % ("llama" if mistake == "plain LLM" else "llava"))
    arguments, said = REFUSED[mistake]
    call = ["run", "--checkpoint", str(tmp_path), "--benchmarks", str(tmp_path), "--preset", str(tmp_path / "p.yaml")]
    assert main([*call, "--work-dir", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_vlmevalkits_own_command_scores_our_files_as_they_are(both: SimpleNamespace, tmp_path: Path) -> None:
    """Nothing of ours is in the process, but for what makes torchvision importable beside a CPU build of torch."""
    data, work = tmp_path / "data", tmp_path / "work/small"
    data.mkdir()
    work.mkdir(parents=True)
    for name in ("MMStar", "Shelf"):
        shutil.copy(both.folder / f"benchmarks/{name}.tsv", data / f"{name}_x.tsv")
        shutil.copy(both.folder / "predictions" / checkpoint("hlvlm") / f"{name}.tsv", work / f"small_{name}_x.tsv")
    command = "from eval.vlmevalkit import torchvision_shim as shim; shim.import_torchvision(); "
    command += "from vlmeval.run import main; main()"
    arguments = ["--data", "MMStar_x", "Shelf_x", "--model", "small", "--work-dir", str(tmp_path / "work")]
    subprocess.run(
        [PYTHON, "-c", command, *arguments, "--mode", "eval", "--judge", "exact_matching"],
        check=True,
        cwd=ROOT,
        env=os.environ | {"LMUData": str(data), "PRED_FORMAT": "tsv"},
        capture_output=True,
    )
    for name in ("MMStar", "Shelf"):
        scores = sheet(work / f"small_{name}_x_acc.csv")
        assert both.metrics["hlvlm", name, "accuracy"] == 100 * scores.loc["none", "Overall"]


@pytest.mark.parametrize("with_picture", [True, False])
def test_a_padded_batch_gives_the_text_of_one_item_at_a_time(lvlm: Any, tokenizer: Any, with_picture: bool) -> None:
    model, rng = Model(lvlm, tokenizer), np.random.default_rng(3)
    words = ["red", "circle", "on", "the", "left", "of", "12", "photo"]
    texts = [" ".join(rng.choice(words, length)) for length in (1, 90, 3, 40, 2, 60, 7, 1)]
    sizes = [(48, 48), (16, 80), (80, 16), (33, 70), (48, 16), (20, 20), (64, 64), (90, 31)]
    images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
    pictures = lvlm.read(images) if with_picture else []
    together = reply(model, model.encode(texts), pictures, 16)
    alone = [reply(model, model.encode([text]), pictures[row : row + 1], 16)[0] for row, text in enumerate(texts)]
    assert together == alone
    assert len(set(together)) > len(texts) / 2
