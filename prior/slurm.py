"""What a process asks SLURM, about its own job and others, and the one thing that it tells it: to start it again."""

from __future__ import annotations

import os
import re
import subprocess

# States in which the processes of a job may be at work.
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "CONFIGURING"}
PATIENCE = 20.0


class NoAnswer(Exception):
    """SLURM's controller does not answer, or its commands are not installed here."""


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to; None outside of one."""
    return os.environ.get("SLURM_JOB_ID")


def describe(job: str) -> dict[str, str] | None:
    """What the controller knows about a job (``JobState``, ``EndTime``, ``Restarts``, …); None if it knows no such job.

    Raises
    ------
    NoAnswer
    """
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(str(error)) from None
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(done.stderr.strip())
    return dict(re.findall(r"(?:^|\s)([\w:/]+)=(\S*)", done.stdout)) or None


def at_work(job: str) -> bool:
    """Whether processes of a job may be running.

    Raises
    ------
    NoAnswer
    """
    known = describe(job)
    return known is not None and known["JobState"] in AT_WORK


def requeue(job: str) -> bool:
    """Let a running job start again from its beginning, under the same id; whether SLURM agreed.

    A job that somebody cancelled, or that SLURM itself is about to start again, is left alone.
    """
    try:
        known = describe(job)
        if known is None or known["JobState"] != "RUNNING":
            return False
        return subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=PATIENCE).returncode == 0
    except (NoAnswer, subprocess.TimeoutExpired):
        return False
