"""Answers, in place of ``sacct``, what Snakemake's SLURM plugin asks all the time: how are the jobs of this run?

`cluster.manners` puts a command of that name before the cluster's own, to which all other questions go through.
The plugin (2.8.0) hangs where the real command says nothing, says `CANCELLED by 1000`, fails once too often, or where a
job is forgotten. So: the controller is asked first, and waited for while it is out; accounting tells about jobs that
the controller has dropped; what neither knows has ended, and its files tell how.

Between two questions the plugin sleeps longer and longer. So the answer waits, too, until a job has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from prior.files import write_text

# Which jobs were seen, in the folder in which Snakemake works.
MEMORY = Path(".snakemake/slurm_jobs")
OURS = Path(__file__).resolve().parent.parent / "workflow/profiles/slurm/bin"
# The plugin gives a query up after 60 seconds and asks again.
PATIENCE = 45
# Seconds between two questions to the controller.
INTERVAL = float(os.environ.get("PRIOR_POLL_SECONDS", "10"))
RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"}
RUNNING |= {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT"}
# Mostly on the way to a new start, but where that is switched off, the end; the plugin would wait for ever.
UNSURE = {"PREEMPTED", "NODE_FAIL"}


def main(arguments: list[str]) -> int:
    real = real_command()
    if "--name" not in arguments:
        done = subprocess.run([real, *arguments], capture_output=True, text=True) if real else None
        # Without accounting there is nothing to say, which is no error.
        sys.stdout.write(done.stdout if done and not done.returncode else "")
        return 0
    run = arguments[arguments.index("--name") + 1]
    memory = MEMORY / f"{run}.json"
    known = remembered(memory)
    states = wait_for_news(run, known, [real, *arguments] if real else None)
    if states is None:
        return 1
    for job, state in states.items():
        print(f"{job}|{state}")
    # A job that was not known when the question came may be none of those that the plugin asked about.
    told = {job: state not in RUNNING and job in known for job, state in states.items()}
    # On a full disk it is forgotten, which costs time alone.
    with suppress(OSError):
        write_text(memory, json.dumps(known | told))
    return 0


def remembered(memory: Path) -> dict[str, bool]:
    try:
        return dict(json.loads(memory.read_text()))
    except (OSError, ValueError):
        return {}


def wait_for_news(run: str, known: dict[str, bool], accounting: list[str] | None) -> dict[str, str] | None:
    """The states of a run's jobs, as soon as one has ended of which that was not told; None if nobody answers.

    Parameters
    ----------
    known
        The jobs of earlier answers, and whether these told that they had ended.
    accounting
        The command that asks the cluster's accounting for them.
    """
    end = time.monotonic() + PATIENCE
    # Of jobs that came and went between two questions nobody else knows.
    recorded = (asked(accounting) if accounting else None) or {}
    states = None
    while time.monotonic() < end:
        states = asked(["squeue", "--noheader", "--states=all", "--format=%i|%T", "--name", run])
        if states is not None:
            lost = {job: "UNKNOWN" for job, ended in known.items() if not ended}
            states = lost | recorded | states
            if any(state not in RUNNING | UNSURE and not known.get(job) for job, state in states.items()):
                break
        time.sleep(INTERVAL)
    if states is None:
        return None
    surely = "FAILED" if time.monotonic() >= end else "PENDING"
    return {job: surely if state in UNSURE else state for job, state in states.items()}


def asked(command: list[str]) -> dict[str, str] | None:
    """Jobs and their states; None if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE / 3)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = (line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {job: state.split()[0] for job, state in rows}


def real_command() -> str | None:
    """The cluster's own command."""
    for folder in os.environ["PATH"].split(os.pathsep):
        path = Path(folder, "sacct")
        if path.is_file() and os.access(path, os.X_OK) and Path(folder).resolve() != OURS:
            return str(path)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
