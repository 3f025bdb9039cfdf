"""One training on several nodes, and the whole of a preset."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from tests.end_to_end.running import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.work import Make, Work


def test_two_nodes_with_two_processes_train_as_one_process_does(
    make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]
) -> None:
    """Through srun and torchrun, interrupted once: the same rows in every step, so the same losses but for rounding."""
    work = make(jobs="nodes: 2, processes: 2")
    process = work.start()
    work.reach(20, process)
    assert work.of_job("NumNodes") == "2"
    cluster.run("scancel", "--signal=USR1", work.job())
    injected["SLURM's warning signal, to four processes on two nodes"] += 1
    work.restarted(1)
    work.finish(process)
    assert work.went_on() and len(work.submitted()) == 1
    assert "processes: 4" in (work.output / "run.yaml").read_text()
    one, four = (
        pd.DataFrame([json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()])
        for run in (undisturbed, work)
    )
    assert one.step.tolist() == four.step.tolist() and one.tokens.tolist() == four.tokens.tolist()
    for name in ("loss", "loss_relevant", "loss_other", "objective", "grad_norm"):
        assert np.allclose(one[name], four[name], rtol=2e-3), name
    heldout = [pd.read_csv(run.output / "heldout.csv").value for run in (undisturbed, work)]
    assert np.allclose(*heldout, rtol=2e-3)
    weights = [load_file(run.output / "final/model.safetensors") for run in (undisturbed, work)]
    assert all(np.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])
    assert not work.state.exists()


def test_the_whole_of_a_preset(
    tmp_path: Path, cluster: Cluster, tiny: tuple[Path, str], injected: Counter[str]
) -> None:
    """As a newcomer starts it, from a bare checkout; Snakemake is killed and started again: the same metrics.csv."""
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", ROOT, checkout], check=True)
    # What is not committed yet is part of what is tested.
    changed = ["git", "ls-files", "--modified", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(changed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    for name in (".venv", ".venv-vlmevalkit"):
        (checkout / name).symlink_to(ROOT / name)
    env = {**cluster.env, "PRIOR_POLL_SECONDS": "1"}
    call = [
        str(Path(sys.executable).with_name("snakemake")), "--profile", "slurm",
        "--slurm-init-seconds-before-status-checks", "1", "--jobs", "3", "--config", "preset=tiny",
    ]  # fmt: skip
    dry = subprocess.run([*call, "--dry-run"], env=env, cwd=checkout, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    # `all` is a name for what the others make.
    jobs = re.findall(r"^rule (?!all:)\w+:\n(?:    .*\n)*", dry.stdout, re.MULTILINE)
    asked = [re.search(r"resources: .*mem_mb=\d+", job) and re.search(r"runtime=\d+", job) for job in jobs]
    assert len(jobs) > 40 and all(asked), "a job without a request"
    assert all("gpu=0" in job for job in jobs)
    said = checkout / "said.txt"

    def start() -> subprocess.Popen[bytes]:
        with said.open("a") as stream:
            return subprocess.Popen(call, env=env, cwd=checkout, stdout=stream, stderr=stream, start_new_session=True)

    process = start()
    training = checkout / "results/tiny/.state"

    def trains() -> bool:
        assert process.poll() is None, said.read_text()[-5000:]
        return bool(list(training.glob("*lvlm/**/log.jsonl")))

    cluster.wait("the first training of an LVLM", trains, 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    injected["Snakemake of a whole preset killed with SIGKILL"] += 1
    cluster.wait("the orphans' end", lambda: not cluster.run("squeue", "-h"), 120)
    subprocess.run([*call, "--unlock"], env=env, cwd=checkout, check=True, capture_output=True)
    process = start()
    try:
        assert process.wait(1800) == 0, said.read_text()[-5000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    results = [folder / name for folder, name in ((checkout, "results/tiny"), (tiny[0], "results/mine"))]
    first, second = (hashlib.sha256((folder / "metrics.csv").read_bytes()).hexdigest() for folder in results)
    assert first == second
    submitted = re.findall(r"submitted with SLURM jobid (\d+)", said.read_text())
    # None was run twice: what orphans finished was kept.
    assert len(submitted) == len(set(submitted)) == len(jobs), said.read_text()[-5000:]


def test_a_users_mistake_is_not_tried_again(make: Make) -> None:
    work = make()
    work.write("scales: [3k, 12k, 40k]\n")
    (work.results / "tokens/train.json").unlink()
    target = "results/mine/tokens/train.json"
    call = [part if not part.endswith("pretrain") else target for part in work.snakemake()]
    done = subprocess.run(call, env=work.env, cwd=work.folder, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("error: scales: 40k: 40000 caption tokens are asked for")
    assert "Trying to restart" not in done.stderr


def test_the_status_of_jobs_that_the_controller_has_forgotten(tmp_path: Path, accounted: Cluster) -> None:
    """Accounting tells, and what it does not know either has ended; without any, every question has an answer."""
    path = f"{ROOT}/workflow/profiles/slurm/bin{os.pathsep}{accounted.env['PATH']}"
    env = {**accounted.env, "PATH": path, "PRIOR_PYTHON": sys.executable, "PRIOR_POLL_SECONDS": "0.2"}

    def status(*arguments: str) -> list[str]:
        # As the plugin asks.
        call = ["sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", *arguments]
        done = subprocess.run(call, env=env, cwd=tmp_path, check=True, capture_output=True, text=True)
        return sorted(done.stdout.splitlines())

    def submit(command: str) -> str:
        call = ["sbatch", "--parsable", "--job-name=prior_run", "--output=/dev/null", f"--wrap={command}"]
        return accounted.run(*call).strip()

    long, short = submit("sleep 600"), submit("sleep 2")
    # It waits until there is something to tell.
    assert status("--name", "prior_run") == sorted([f"{long}|RUNNING", f"{short}|COMPLETED"])
    accounted.run("scancel", long)
    assert status("--name", "prior_run") == sorted([f"{long}|CANCELLED", f"{short}|COMPLETED"])
    recorded = ["sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", "prior_run"]
    accounted.wait("accounting", lambda: f"{long}|CANCELLED by 0" in accounted.run(*recorded))
    accounted.forget()
    # Snakemake was not there when the job ended, or another one that accounting has never heard of.
    (memory,) = (tmp_path / ".snakemake/slurm_jobs").iterdir()
    memory.write_text(json.dumps({long: False, "99999": False}))
    assert status("--name", "prior_run") == sorted([f"{long}|CANCELLED", f"{short}|COMPLETED", "99999|UNKNOWN"])
    # Whatever else is asked goes through.
    assert status("-j", long) == [f"{long}|CANCELLED by 0"]
    accounted.end("slurmdbd")
    assert status("-j", long) == []
