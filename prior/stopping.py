"""Stopping a training before its end and in good order: asked by a signal, or because its time is nearly over.

The command line listens (`listen`); the training loop asks after every step (`reason`), saves and raises `Stopped`.
"""

from __future__ import annotations

import math
import os
import signal
import time
from datetime import datetime

from prior import slurm
from prior.errors import UserError

# EX_TEMPFAIL of sysexits.h: nothing is wrong, start again.
EXIT_CODE = 75
SIGNALS = {signal.SIGTERM: "told to end", signal.SIGUSR1: "warned that time is nearly over"}
BUDGET = "PRIOR_MINUTES"
# Seconds since 1970: one moment for all jobs of a run.
DEADLINE = "PRIOR_DEADLINE"

_asked: str | None = None
_deadline: float | None = None


class Stopped(Exception):
    """A training has been saved and has stopped before its last step."""


def lead(limit: float) -> float:
    """How long before the end of a time limit to stop, so that saving fits in between; both in seconds."""
    return min(600.0, 0.2 * limit)


def listen() -> None:
    """From now on note the signals, and learn how much time there is.

    It ends with the SLURM job's, with ``PRIOR_MINUTES`` from now, or at ``PRIOR_DEADLINE``.

    Raises
    ------
    UserError
        If one of these variables is not a number.
    """
    global _deadline
    for number in SIGNALS:
        signal.signal(number, _ask)
    ends = [end for end in (_end_of_budget(), _end_of_run(), _end_of_job()) if end is not None]
    _deadline = min(ends, default=None)


def too_late() -> bool:
    """Whether the moment has passed at which all jobs of a run are to stop: none need start."""
    end = _end_of_run()
    return end is not None and time.time() >= end


def reason() -> str | None:
    """Why to stop now; None to go on."""
    if _asked is None and _deadline is not None and time.time() >= _deadline:
        return "its time is nearly over"
    return _asked


def _ask(number: int, _: object) -> None:
    global _asked
    _asked = SIGNALS[signal.Signals(number)]


def _end_of_budget() -> float | None:
    given = os.environ.get(BUDGET)
    if not given:
        return None
    try:
        seconds = 60 * float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"{BUDGET}: '{given}' is not a number of minutes; write it as 55 or 1.5")
    return time.time() + seconds - lead(seconds)


def _end_of_run() -> float | None:
    given = os.environ.get(DEADLINE)
    try:
        return float(given) if given else None
    except ValueError:
        raise UserError(
            f"{DEADLINE}: '{given}' is no number of seconds since 1970; write what `date +%s` says"
        ) from None


def _end_of_job() -> float | None:
    """When the job of this process has to stop; None where it has all the time it wants, or nobody can tell."""
    job = slurm.own_job()
    try:
        known = (slurm.describe(job) if job else None) or {}
        start, end = (datetime.fromisoformat(known[name]).timestamp() for name in ("StartTime", "EndTime"))
    except (slurm.NoAnswer, KeyError, ValueError):
        return None
    return end - lead(end - start)
