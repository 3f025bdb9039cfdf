"""An interrupted prediction goes on where it stopped, and only there where its answers still hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.cli
import eval.predict
from eval.answers import Answers
from eval.benchmarks import maker, write_tsv

ROOT = Path(__file__).resolve().parents[2]
RUN = "ulvlm/ntp/3k/seed0"
NAMES = ("MME", "POPE")
# Asked in batches of four, so in four batches with the pictures and four without.
ITEMS = 14
PRESET = f"""
extends: tiny
benchmarks: {{MME: {{items: {ITEMS}}}, POPE: {{items: {ITEMS}}}}}
evaluation: {{batch_size: 4, max_new_tokens: 8}}
"""
# The tenth batch, the second of POPE with its pictures, is cut off in the middle by a kill that no code can answer.
KILLED = """
import os, signal, sys
from eval import answers, cli
add, written = answers.Answers.add, []
def dying(self, batch):
    add(self, batch)
    written.append(batch)
    if len(written) == 10:
        content = self._path.read_bytes()
        self._path.write_bytes(content[:-20])
        os.kill(os.getpid(), signal.SIGKILL)
answers.Answers.add = dying
cli.app(sys.argv[1:])
"""

GARBAGE = [b"", b"\0\0", b'{"3": "a', b"5\n", b"null\n", b'{"x": "a"}\n', b"[1]\n"]
Batches = st.lists(st.dictionaries(st.integers(0, 99), st.text(), min_size=1), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(Batches, st.text(), st.integers(0, 5), st.integers(0, 30), st.sampled_from(GARBAGE))
def test_whatever_was_written_whole_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[dict[int, str]],
    key: str,
    line: int,
    missing: int,
    garbage: bytes,
) -> None:
    path = tmp_path_factory.mktemp("answers") / "private" / "MME.jsonl"
    answers = Answers(path, key)
    ends = [path.stat().st_size]
    for batch in batches:
        answers.add(batch)
        ends.append(path.stat().st_size)
    # Cut off somewhere before the end of a line.
    torn = path.read_bytes()[: max(0, ends[line % len(ends)] - missing)]
    path.write_bytes(torn + garbage * (missing == 0))

    again = Answers(path, key)
    whole = [batch for batch, end in zip(batches, ends[1:], strict=True) if end <= len(torn)]
    assert again.given == {row: text for batch in whole for row, text in batch.items()}
    for batch in batches[len(whole) :]:
        again.add(batch)
    assert Answers(path, key).given == again.given == answers.given
    assert Answers(path, f"{key}.").given == {} == Answers(path, key).given
    answers.remove()
    assert not path.exists()


class Interrupted(BaseException):
    """Ends a job between two batches."""


@pytest.fixture
def job(lvlm: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arguments of a prediction job over two benchmarks, and a function that runs it and counts what it asks."""
    final = tmp_path / "runs" / RUN / "tuned/final"
    lvlm.save(final)
    tokenizer.save_pretrained(final)
    (tmp_path / "p.yaml").write_text(PRESET)
    for name in NAMES:
        rows = maker(name).rows(ITEMS, 0, 0, 48)
        path = tmp_path / f"benchmarks/{name}.tsv"
        write_tsv(rows, path)
        prompts = [{"index": str(row["index"]), "text": row["question"]} for row in rows]
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    arguments = ["predict", "--preset", str(tmp_path / "p.yaml"), "--run", RUN]
    arguments += [part for name in NAMES for part in ("--benchmark", name)]
    for folder in ("runs", "benchmarks", "out", "state"):
        arguments += [f"--{folder}", str(tmp_path / folder)]
    reply = eval.predict.reply
    monkeypatch.setattr(eval.cli, "begin_long_work", torch.set_num_threads)

    def run(die_after: int = 99) -> int:
        asked = 0

        def counting(model: Any, texts: list[str], *more: Any) -> list[str]:
            nonlocal asked, die_after
            if die_after == 0:
                raise Interrupted
            die_after -= 1
            asked += len(texts)
            return reply(model, texts, *more)

        monkeypatch.setattr(eval.predict, "reply", counting)
        eval.cli.app(arguments, standalone_mode=False)
        return asked

    run.arguments = arguments  # type: ignore[attr-defined]
    return run


def predictions(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tsv"))}


one_architecture = pytest.mark.parametrize("arch", ["ulvlm"], indirect=True)


@one_architecture
def test_a_killed_job_asks_only_what_is_missing_and_writes_the_same_bytes(job: Any, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    assert job() == 4 * ITEMS
    wanted = predictions(out)
    assert len(set(wanted.values())) == 4 and not list(state.rglob("*.jsonl"))
    for path in out.rglob("*.tsv"):
        path.unlink()

    killed = subprocess.run([sys.executable, "-c", KILLED, *job.arguments], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    # As Snakemake does with what a failed job has written.
    assert len(predictions(out)) == 2
    for path in out.rglob("*.tsv"):
        path.unlink()
    # Two files were whole, of the third one batch, and another in part.
    assert job() == 4 * ITEMS - 2 * ITEMS - 4
    assert predictions(out) == wanted
    assert not list(state.rglob("*.jsonl"))


def other_weights(folder: Path, lvlm: Any) -> None:
    for parameter in lvlm.model.parameters():
        parameter.data.mul_(-1)
    lvlm.save(folder / "runs" / RUN / "tuned/final")


def edit(file: str, old: str, new: str) -> Callable[[Path, Any], None]:
    def change(folder: Path, _: Any) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


CHANGES: dict[str, tuple[Callable[[Path, Any], None], int]] = {
    "nothing": (lambda *_: None, 4 * ITEMS - 3 * 4),
    "checkpoint": (other_weights, 4 * ITEMS),
    "benchmark": (edit("benchmarks/MME.tsv", "existence", "position"), 4 * ITEMS),
    "prompts": (edit("benchmarks/MME.jsonl", "Please", "Kindly"), 4 * ITEMS),
    "another benchmark": (edit("benchmarks/POPE.tsv", "random", "popular"), 4 * ITEMS - 3 * 4),
    "setting": (edit("p.yaml", "max_new_tokens: 8", "max_new_tokens: 7"), 4 * ITEMS),
}


@one_architecture
@pytest.mark.parametrize("change", CHANGES)
def test_answers_to_another_question_are_discarded(change: str, job: Any, lvlm: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        job(die_after=3)
    apply, asked = CHANGES[change]
    apply(tmp_path, lvlm)
    assert job() == asked
    resumed = predictions(tmp_path / "out")
    assert job() == 4 * ITEMS
    assert predictions(tmp_path / "out") == resumed
