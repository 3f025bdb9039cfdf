"""One training on the cluster of the tests, as a user starts it: `snakemake --profile slurm`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.running import ROOT, command
from tests.slurm.cluster import Cluster

RUN = "hlvlm/prior/12k/seed0"
# A training of some fifteen seconds, saved every second.
LONGER = "pretrain: {epochs: 12, save_steps: 20, rows_per_step: 4}\n"
LEFT_OUT = ("runs", "predictions", "measures", "tables", "figures", ".state")


class Work:
    """A folder that holds everything but the training, and Snakemakes that are to add it."""

    def __init__(
        self, folder: Path, cluster: Cluster, tiny: tuple[Path, str], *, partition: str = "gpu", jobs: str = ""
    ) -> None:
        shutil.copytree(tiny[0] / "results", folder / "results", ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.copytree(tiny[0] / ".snakemake", folder / ".snakemake")
        self.folder = folder
        self.cluster = cluster
        self.preset = folder / "mine.yaml"
        self.write(f"jobs: {{pretrain: {{{jobs}}}}}\n")
        (folder / "cluster.yaml").write_text(f"partition: {partition}\nnode: {{cpus: 16, memory_gb: 60, gpus: 4}}\n")
        self.env = {**cluster.env, "PRIOR_CLUSTER": str(folder / "cluster.yaml"), "PRIOR_POLL_SECONDS": "1"}
        self.results = folder / "results/mine"
        self.state = self.results / ".state" / RUN / "pretrain"
        self.output = self.results / "runs" / RUN / "pretrain"

    def write(self, more: str = "") -> None:
        self.preset.write_text(f"extends: tiny\n{LONGER}{more}")

    def snakemake(self, *more: str) -> list[str]:
        target = str(self.output.relative_to(self.folder))
        profile = ("--profile", str(ROOT / "slurm"), "--slurm-init-seconds-before-status-checks", "1")
        return command(self.folder, str(self.preset), target, *more, where=profile)

    def start(self, *more: str) -> subprocess.Popen[str]:
        said = (self.folder / "said.txt").open("w")
        return subprocess.Popen(
            self.snakemake(*more),
            env=self.env,
            cwd=self.folder,
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def submitted(self) -> list[str]:
        """The jobs that were submitted, in their order."""
        return re.findall(r"submitted with SLURM jobid (\d+)", self.said)

    def step(self) -> int:
        log = self.state / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def reach(self, step: int, process: subprocess.Popen[str] | None = None) -> None:
        """Wait until the training has come this far."""

        def there() -> bool:
            assert process is None or process.poll() is None, self.said[-3000:] + self.log()
            return self.step() >= step

        self.cluster.wait(f"step {step}\n{self.said[-2000:]}", there, 90)

    def job(self) -> str:
        return self.submitted()[-1]

    def shown(self, job: str | None = None) -> dict[str, str]:
        """What SLURM says of a job, all of it at one moment."""
        text = self.cluster.run("scontrol", "--oneliner", "show", "job", job or self.job())
        return dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", text))

    def of_job(self, field: str, job: str | None = None) -> str:
        found = self.shown(job)
        assert field in found, found
        return found[field]

    def restarted(self, times: int, *changes: str) -> None:
        """Wait until SLURM has started the job again, with changes; it would let two minutes pass, were it not told."""

        def running() -> bool:
            job = self.shown()
            if job["JobState"] == "PENDING":
                update = ["scontrol", "update", f"JobId={self.job()}", "StartTime=now", *changes]
                subprocess.run(update, env=self.cluster.env, capture_output=True)
            return int(job["Restarts"]) >= times and job["JobState"] == "RUNNING"

        self.cluster.wait(f"start {times + 1} of job {self.job()}", running, 90)

    def trainer(self) -> int:
        """The process that trains, by its lock."""
        lock = self.state.with_name(".pretrain.lock")
        self.cluster.wait("the lock", lock.exists, 60)
        return int(json.loads(lock.read_text())["pid"])

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        try:
            assert process.wait(180) == code, self.said[-4000:] + self.log()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return self.said

    def log(self) -> str:
        """What the last attempt of the training said."""
        path = self.results / "logs/pretrain/hlvlm/prior/12k.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def went_on(self) -> bool:
        """Whether the last attempt began at a checkpoint."""
        return "going on from" in self.log()

    def weights(self) -> str:
        return hashlib.sha256((self.output / "final/model.safetensors").read_bytes()).hexdigest()

    def steps_logged(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.output / "log.jsonl").read_text().splitlines()]


Make = Callable[..., Work]
