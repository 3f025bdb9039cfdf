"""What tests of single processes need: a stand-in for `scontrol`, and a process that nobody has asked to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prior import stopping

RUNNING = "echo 'JobId=41 JobName=prior JobState=RUNNING Reason=None'"
UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
OUT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


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
