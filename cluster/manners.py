"""What a Snakemake of this project does on a login node, and does not do by itself."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from snakemake.logging import logger

from cluster.status import OURS

# With this the names of all its jobs begin; the profile says it to the plugin.
PREFIX = "prior_"


def prepare(workflow: Any, mistakes: Callable[[Iterable[str]], list[str]]) -> None:
    """To be called when the Snakefile is read, in the Snakemake of the user and in those of the jobs."""
    if not workflow.is_main_process:
        # SLURM's warning goes to every process of a job: it is for the training and kills those that do not expect it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return
    # The plugin finds our `sacct` before the cluster's.
    os.environ["PATH"] = f"{OURS}{os.pathsep}{os.environ['PATH']}"
    os.environ["PRIOR_PYTHON"] = sys.executable
    logger.addHandler(_NoRetryOfMistakes(workflow, mistakes))


class _NoRetryOfMistakes(logging.Handler):
    """Takes a rule's retries away when one of its jobs met a user's mistake, which no retry mends.

    Snakemake reports a failed job before it asks whether to restart it, and has no setting for this. Other jobs of the
    rule lose theirs, too: after a failure no more are started anyway.
    """

    def __init__(self, workflow: Any, mistakes: Callable[[Iterable[str]], list[str]]) -> None:
        super().__init__()
        self.workflow = workflow
        self.mistakes = mistakes

    def emit(self, record: logging.LogRecord) -> None:
        rule = getattr(record, "rule_name", None)
        logs = [path for path in getattr(record, "log", None) or [] if Path(path).is_file()]
        if record.levelno >= logging.ERROR and rule and self.mistakes(logs):
            self.workflow.get_rule(rule).restart_times = 0


def refuse_beside_orphans(workflow: Any) -> None:
    """End with one line if jobs of an earlier Snakemake still work in this folder: their files would be written twice.

    A Snakemake that was killed cannot cancel its jobs. They go on, and what they finish is kept.
    """
    if not shutil.which("squeue"):
        return
    asked = subprocess.run(["squeue", "--noheader", "--me", "--format=%i|%j|%Z"], capture_output=True, text=True)
    if asked.returncode and not workflow.local_exec:
        print(f"error: squeue does not answer ({asked.stderr.strip()}); start again when it does", file=sys.stderr)
        sys.exit(2)
    rows = (line.split("|", 2) for line in asked.stdout.splitlines())
    jobs = [job for job, name, folder in rows if name.startswith(PREFIX) and folder == workflow.workdir_init]
    if jobs:
        print(
            f"error: jobs {' '.join(jobs)} of an earlier Snakemake still work here; wait for their end (what they "
            f"finish is kept), or end them with `scancel {' '.join(jobs)}`; then start again",
            file=sys.stderr,
        )
        sys.exit(2)
