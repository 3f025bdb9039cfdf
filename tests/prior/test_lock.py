"""One process at a time: who holds the lock of a training, who waits for it, and who takes it from the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prior import stopping
from tests.prior import fake_slurm
from tests.prior.fake_slurm import OUT, RUNNING, UNKNOWN

ROOT = Path(__file__).resolve().parents[2]
# Slower machines than the usual one must get by with it.
PATIENCE = 30.0

unasked, scontrol = fake_slurm.unasked, fake_slurm.scontrol


def soon(what: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until something is true."""
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


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
