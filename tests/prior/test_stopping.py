"""Trainings that are stopped in good order: by signals, by time limits and by full disks."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prior import backbones, config, console, stopping, training
from prior.documents import tokenize_captions
from prior.errors import UserError
from prior.files import fingerprint
from prior.state import read_lines
from tests.prior import fake_slurm, test_runs
from tests.prior.fake_slurm import OUT, RUNNING, start_anew
from tests.prior.test_runs import Pretrain, same

pretrain = test_runs.pretrain
unasked, scontrol = fake_slurm.unasked, fake_slurm.scontrol


@contextmanager
def after(step: int, what: Callable[[], Any]) -> Iterator[None]:
    """Something happens once in the training, just after this step has been logged."""
    log = training.Loop.log

    def log_and_do(self: Any, *args: Any) -> None:
        log(self, *args)
        if self.state.global_step == step:
            what()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Loop, "log", log_and_do)
        yield


def receive(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def run_out_of_time() -> None:
    """A budget so small that it is over at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(stopping.BUDGET, "0.0001")
        stopping.listen()
    time.sleep(0.01)


def checkpoints(state: Path) -> list[str]:
    return sorted(path.name for path in state.glob("checkpoint-*"))


@pytest.mark.parametrize("save_steps", [0, 2])
@pytest.mark.parametrize(
    ("why", "what"),
    {
        "told to end": lambda: receive(signal.SIGTERM),
        "warned that time is nearly over": lambda: receive(signal.SIGUSR1),
        "its time is nearly over": run_out_of_time,
    }.items(),
    ids=["SIGTERM", "SIGUSR1", "budget"],
)
def test_a_training_that_is_stopped_is_saved_and_goes_on_as_if_nothing_had_been(
    why: str,
    what: Callable[[], None],
    save_steps: int,
    pretrain: Pretrain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = pretrain("ulvlm", "a", save_steps=save_steps)
    steps = len(read_lines(undisturbed / "log.jsonl"))
    stopping.listen()
    with after(4, what), pytest.raises(stopping.Stopped, match=rf"saved after step 5 of {steps} \({why}\)"):
        pretrain("ulvlm", "b", save_steps=save_steps)
    assert checkpoints(tmp_path / "b/state")[-1] == "checkpoint-5" and not (tmp_path / "b/out").exists()
    start_anew()
    begun: list[int] = []
    monkeypatch.setattr(
        training.AtSteps, "on_step_begin", lambda self, args, state, control, **_: begun.append(state.global_step)
    )
    same(pretrain("ulvlm", "b", save_steps=save_steps), undisturbed)
    assert begun == list(range(5, steps)), "no step is taken twice"
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["out"], "neither state nor lock is left"


def test_a_training_comes_to_its_end_one_step_at_a_time(arch: str, pretrain: Pretrain) -> None:
    """Each attempt has time for a single step; being asked in the last one does not undo it."""
    undisturbed = pretrain(arch, "a", save_steps=0)
    run_out_of_time()
    said = []
    while True:
        try:
            last = pretrain(arch, "b", save_steps=0)
        except stopping.Stopped as stopped:
            said.append(str(stopped).split(": ")[1])
        else:
            break
    steps = len(read_lines(undisturbed / "log.jsonl"))
    assert said == [f"saved after step {step} of {steps} (its time is nearly over)" for step in range(1, steps)]
    same(last, undisturbed)


def test_the_vision_tower_goes_on_as_well(records: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = config.ScratchVision(hidden_size=32, layers=1, heads=2, intermediate_size=32, batch_size=8, epochs=1)

    def train(name: str) -> str:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        captions = tokenize_captions(records, tokenizer)
        backbones.train_vision(captions, tokenizer, settings, out, tmp_path / f"{name}.state")
        return fingerprint(out)

    undisturbed = train("a")
    stopping.listen()
    with after(1, lambda: receive(signal.SIGTERM)), pytest.raises(stopping.Stopped, match="saved after step 2 of 3"):
        train("b")
    assert not any((tmp_path / "b").iterdir())
    start_anew()
    assert train("b") == undisturbed


def test_of_its_checkpoints_a_training_keeps_two(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which one is whole at any time, also while the next is being written."""
    state = tmp_path / "a/state"
    between: list[int] = []
    whole: list[list[str]] = []
    mark = training.mark_whole

    def look_and_mark(checkpoint: Path) -> None:
        whole.append([path.parent.name for path in state.glob("checkpoint-*/whole")])
        mark(checkpoint)

    monkeypatch.setattr(training, "mark_whole", look_and_mark)
    monkeypatch.setattr(training.AtSteps, "on_step_begin", lambda *_, **__: between.append(len(checkpoints(state))))
    steps = len(read_lines(pretrain("ulvlm", "a", save_steps=1) / "log.jsonl"))
    assert between == [0, 1] + [2] * (steps - 2)
    assert whole == [[], *([f"checkpoint-{step}"] for step in range(1, steps))]


@contextmanager
def files_up_to(size: float) -> Iterator[None]:
    """The system refuses longer files, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0.5, 1.2])
def test_a_full_disk_costs_nothing_of_what_was_saved(
    room: float, pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights do not fit, or the state of the optimizer does not."""
    undisturbed = pretrain("ulvlm", "a")
    state = tmp_path / "b/state"
    save = training.Loop._save_checkpoint

    def save_on_a_full_disk(self: Any, *args: Any) -> None:
        if self.state.global_step < 4:
            return save(self, *args)
        with files_up_to(room * (state / "checkpoint-2/model/__0_0.distcp").stat().st_size):
            save(self, *args)

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(training.Loop, "_save_checkpoint", save_on_a_full_disk)
        pretrain("ulvlm", "b")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{state / 'checkpoint-4'} cannot be written, for there is no room left on its disk; ")
    assert checkpoints(state) == ["checkpoint-2"] and (state / "checkpoint-2/whole").exists()
    same(pretrain("ulvlm", "b"), undisturbed)


# Time limits, and the command line.


@pytest.mark.parametrize("given", ["soon", "1:30", "10 min", "0", "-5", "nan"])
def test_a_budget_that_is_no_number_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stopping.BUDGET, given)
    with pytest.raises(UserError) as caught:
        stopping.listen()
    assert str(caught.value) == f"PRIOR_MINUTES: '{given}' is not a number of minutes; write it as 55 or 1.5"


@pytest.mark.parametrize(
    ("left", "expected"), [(150, "its time is nearly over"), (250, None), (None, None)], ids=["near", "far", "unknown"]
)
def test_a_job_stops_a_while_before_its_limit(
    left: float | None, expected: str | None, scontrol: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job of 1000 seconds, the last 200 are for saving."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    end = datetime.now() + timedelta(seconds=left or 0)
    times = [f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in (end - timedelta(seconds=1000), end)]
    scontrol(OUT if left is None else f"{RUNNING}; echo 'StartTime={times[0]} EndTime={times[1]} Deadline=N/A'")
    stopping.listen()
    assert stopping.reason() == expected
    monkeypatch.setenv(stopping.BUDGET, "1e-9")
    stopping.listen()
    assert stopping.reason() == "its time is nearly over", "the earlier of two limits counts"


@pytest.mark.parametrize(
    ("job", "answer", "again"),
    [
        (None, RUNNING, "start again to go on"),
        ("41", RUNNING, "job 41 starts again by itself"),
        ("41", RUNNING.replace("RUNNING", "COMPLETING"), "start again to go on"),
        ("41", OUT, "start again to go on"),
    ],
    ids=["no job", "running", "cancelled", "no answer"],
)
def test_the_command_line_has_a_stopped_job_started_again(
    job: str | None,
    answer: str,
    again: str,
    scontrol: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    scontrol(answer)

    def stopped() -> None:
        raise stopping.Stopped("state: saved after step 1 of 2 (told to end)")

    with pytest.raises(SystemExit) as caught:
        console.run(stopped)
    assert caught.value.code == stopping.EXIT_CODE
    assert capsys.readouterr().err == f"state: saved after step 1 of 2 (told to end); {again}\n"
    asked = (tmp_path / "asked").read_text().splitlines() if job else []
    assert ("requeue 41" in asked) == ("starts again" in again)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_command_line_has_one_line_for_a_full_disk(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number), "results/log.jsonl")

    with pytest.raises(SystemExit) as caught:
        console.run(write)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: results/log.jsonl: there is no room left on its disk; make room and start again"
