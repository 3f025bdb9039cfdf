"""One process at a time, and trainings that are stopped in good order: by signals, by time limits and by full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from prior import backbones, cli, config, stopping, training
from prior.documents import tokenize_captions
from prior.errors import UserError
from prior.files import fingerprint
from prior.state import read_lines
from tests.prior import test_runs
from tests.prior.test_runs import Pretrain, same

ROOT = Path(__file__).resolve().parents[2]
# Slower machines than the usual one must get by with it.
PATIENCE = 30.0

pretrain = test_runs.pretrain


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins outside of SLURM and unasked, and leaves the signals as they were."""
    for name in [name for name in os.environ if name.startswith("SLURM")] + [stopping.BUDGET]:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    start_anew()
    yield
    start_anew()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start_anew() -> None:
    """As if this were another process, which knows nothing of what the former was asked."""
    stopping._asked = stopping._deadline = None


def soon(what: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until something is true."""
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A stand-in for SLURM's command, of which a test says what it does; what it was asked lies in ``asked``."""
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho \"$*\" >> '{tmp_path}/asked'\n. '{tmp_path}/answer'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    def answer(lines: str) -> None:
        (tmp_path / "next").write_text(lines)
        (tmp_path / "next").replace(tmp_path / "answer")

    return answer


# The lock.

# Notes that it is inside, for how long and whether others are there, too: an entrant that neither left nor ended.
HOLDER = """
import os, sys, time
from pathlib import Path
import psutil
from prior import lock, stopping
from prior.errors import UserError

file, journal, interval, seconds, pause = Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:])

def note(what):
    stream = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(stream, f"{what} {os.getpid()}\\n".encode())
    os.close(stream)

def others():
    lines = [line.split() for line in journal.read_text().splitlines()]
    left = {pid for what, pid in lines if what == "leave"}
    inside = {pid for what, pid in lines if what == "enter"} - left - {str(os.getpid())}
    return [pid for pid in inside if alive(int(pid))]

def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

def replace_late(*paths, replace=os.replace):
    time.sleep(pause)
    replace(*paths)

lock.INTERVAL = interval
if pause:
    lock.os.replace = replace_late
stopping.listen()
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock.locked(file):
        note("enter")
        if others():
            note("crowd")
        time.sleep(seconds)
        note("leave")
except UserError as error:
    sys.exit(f"error: {error}")
except stopping.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopping.EXIT_CODE)
"""


class Holder:
    """A process that takes the lock, and stays inside for some seconds."""

    def __init__(self, folder: Path, number: int, job: str | None, *values: float) -> None:
        self.error = folder / f"stderr{number}"
        arguments = [str(folder / "lock/of_a_run"), str(folder / "journal"), *map(str, values)]
        with self.error.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, cwd=ROOT,
                env=os.environ | ({"SLURM_JOB_ID": job} if job else {}),
            )  # fmt: skip
        self.pid = self.process.pid

    def ready(self) -> Holder:
        """The slow part of its start is over."""
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        return self

    def go(self) -> Holder:
        """It goes for the lock now."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def ends(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return self.error.read_text()


class Place:
    """A lock, those who want it, and the journal of those who got it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "lock/of_a_run"
        self.holders: list[Holder] = []

    def holder(self, seconds: float = 0.0, job: str | None = None, interval: float = 0.2, pause: float = 0.0) -> Holder:
        self.holders.append(Holder(self.folder, len(self.holders), job, interval, seconds, pause))
        return self.holders[-1]

    def inside(self, job: str | None = None) -> Holder:
        """A holder that is in, and stays there until it is ended."""
        holder = self.holder(600, job=job).ready().go()
        soon(lambda: ("enter", holder.pid) in self.events())
        return holder

    def left_behind(self, **changes: Any) -> dict[str, Any]:
        """The lock of an owner that was killed, with changes in what it says."""
        self.inside().kill()
        owner = json.loads(self.file.read_text()) | changes
        self.write(owner)
        return owner

    def write(self, owner: dict[str, Any]) -> None:
        new = self.folder / "owner"
        new.write_text(json.dumps(owner))
        new.replace(self.file)

    def events(self) -> list[tuple[str, int]]:
        journal = self.folder / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [(what, int(pid)) for what, pid in map(str.split, lines)]

    def tidy(self) -> bool:
        """Nothing of the lock is left."""
        return not any(self.file.parent.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for holder in found.holders:
        holder.kill()


def test_a_second_process_waits_for_an_owner_that_lives(place: Place) -> None:
    first, second = place.holder(1.0), place.holder()
    first.ready().go()
    soon(place.events)
    second.ready().go()
    assert first.ends() == second.ends() == 0
    assert place.events() == [(what, holder.pid) for holder in (first, second) for what in ("enter", "leave")]
    assert second.said().count("waiting for") == 1 and f"waiting for process {first.pid} on" in second.said()
    assert place.tidy()


@pytest.mark.parametrize("collected", [True, False], ids=["ended", "zombie"])
def test_a_killed_owner_is_replaced_at_once(collected: bool, place: Place) -> None:
    """Also if its parent has not taken note of its end yet, as happens in containers without an init process."""
    owner, waiting = place.inside(), place.holder().ready().go()
    soon(lambda: "waiting for" in waiting.said())
    os.kill(owner.pid, signal.SIGKILL)
    if collected:
        owner.ends()
    soon(lambda: waiting.process.poll() is not None, patience=15)
    assert waiting.ends() == 0
    assert place.events()[1:] == [("enter", waiting.pid), ("leave", waiting.pid)]
    assert f"process {owner.pid} on" in waiting.said() and "left it unfinished" in waiting.said()
    assert place.tidy()


@pytest.mark.parametrize("older", [0, 100])
def test_a_process_that_got_the_id_of_a_dead_owner_is_not_the_owner(older: float, place: Place) -> None:
    place.left_behind(pid=os.getpid(), started=psutil.Process().create_time() - older)
    holder = place.holder().ready().go()
    if older:
        assert holder.ends() == 0
    else:
        soon(lambda: "waiting for" in holder.said())
        time.sleep(0.5)
        assert ("enter", holder.pid) not in place.events()


def test_an_owner_that_cannot_be_asked_for_is_for_the_user_to_judge(place: Place) -> None:
    owner = place.left_behind(host="elsewhere")
    holder = place.holder().ready().go()
    assert holder.ends() == 1
    (line,) = holder.said().splitlines()
    assert line.startswith(f"error: {place.file}: process {owner['pid']} on elsewhere may be at work")
    assert json.loads(place.file.read_text()) == owner
    assert list(place.file.parent.iterdir()) == [place.file]


@pytest.mark.parametrize("looks", [True, False])
def test_an_owner_that_was_replaced_ends_itself(looks: bool, place: Place) -> None:
    """Unless it comes to its own end before its next look at the lock."""
    holder = place.holder(1.0, interval=0.2 if looks else 60).ready().go()
    soon(place.events)
    successor = json.loads(place.file.read_text()) | {"id": "another"}
    place.write(successor)
    assert holder.ends() == (stopping.EXIT_CODE if looks else 0)
    assert ("another process has taken over" in holder.said()) == looks
    assert json.loads(place.file.read_text()) == successor, "the lock is no longer its own to remove"


def test_a_job_that_slurm_started_again_elsewhere_replaces_its_former_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node that SLURM lost sight of; the new one does not go in before the former is gone."""
    former = place.inside(job="41")
    stranger = place.holder(job="42").ready().go()
    soon(lambda: f"waiting for process {former.pid} of job 41" in stranger.said())
    monkeypatch.setenv("SLURMD_NODENAME", "another")
    again = place.holder(1.0, job="41").ready().go()
    assert former.ends() == stopping.EXIT_CODE
    assert again.ends() == stranger.ends() == 0
    entered = [pid for what, pid in place.events() if what == "enter"]
    assert entered == [former.pid, again.pid, stranger.pid]
    assert "crowd" not in [what for what, _ in place.events()]


def test_of_several_that_find_a_dead_owner_one_goes_in_at_a_time(place: Place) -> None:
    place.left_behind()
    holders = [place.holder(0.2, interval=0.8) for _ in range(6)]
    for holder in [holder.ready() for holder in holders]:
        holder.go()
    assert [holder.ends() for holder in holders] == [0] * 6
    events = place.events()[1:]
    assert [what for what, _ in events] == ["enter", "leave"] * 6
    assert all(enter == leave for (_, enter), (_, leave) in zip(events[::2], events[1::2], strict=True))
    assert place.tidy()


def test_a_late_successor_of_a_dead_owner_does_not_join_an_earlier_one(place: Place) -> None:
    """It was held up, by a slow disk for example, between its judgement and its taking over."""
    place.left_behind()
    early, late = place.holder(2.0, interval=1.0).ready(), place.holder(interval=1.0, pause=0.8).ready()
    late.go()
    soon(lambda: "taking the place of" in late.said())
    early.go()
    assert late.ends() == 0
    assert early.ends() in (0, stopping.EXIT_CODE)
    assert "crowd" not in [what for what, _ in place.events()]


RUNNING = "echo 'JobId=41 JobName=prior JobState=RUNNING Reason=None'"
UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
OUT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.mark.parametrize(
    ("waits", "goes_in"),
    [(RUNNING, UNKNOWN), (OUT, UNKNOWN), (RUNNING.replace("RUNNING", "COMPLETING"), RUNNING.replace("RUNN", "PEND"))],
    ids=["running", "no answer", "completing"],
)
def test_of_an_owner_on_another_node_slurm_knows_whether_it_lives(
    waits: str, goes_in: str, place: Place, scontrol: Callable[[str], None], tmp_path: Path
) -> None:
    owner = place.left_behind(host="elsewhere", job="41")
    scontrol(waits)
    holder = place.holder().ready().go()
    soon(lambda: f"waiting for process {owner['pid']} of job 41 on elsewhere" in holder.said())
    asked = (tmp_path / "asked").read_text().splitlines()
    soon(lambda: len((tmp_path / "asked").read_text().splitlines()) > len(asked) + 1)
    assert json.loads(place.file.read_text()) == owner
    scontrol(goes_in)
    assert holder.ends() == 0 and ("enter", holder.pid) in place.events()
    assert set(asked) == {"--oneliner show job 41"}


def test_one_that_waits_can_be_stopped(place: Place) -> None:
    owner, waiting = place.inside(), place.holder().ready().go()
    soon(lambda: "waiting for" in waiting.said())
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.ends() == stopping.EXIT_CODE
    assert f"told to end, while waiting for process {owner.pid}" in waiting.said()
    assert owner.process.poll() is None and list(place.file.parent.iterdir()) == [place.file]


# Trainings.


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
        cli.run(stopped)
    assert caught.value.code == stopping.EXIT_CODE
    assert capsys.readouterr().err == f"state: saved after step 1 of 2 (told to end); {again}\n"
    asked = (tmp_path / "asked").read_text().splitlines() if job else []
    assert ("requeue 41" in asked) == ("starts again" in again)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_command_line_has_one_line_for_a_full_disk(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number), "results/log.jsonl")

    with pytest.raises(SystemExit) as caught:
        cli.run(write)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: results/log.jsonl: there is no room left on its disk; make room and start again"
