"""What clusters do to a training that is half done, and that none of it shows in its weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.work import RUN, Make, Work


def unharmed(work: Work, undisturbed: Work, jobs: int) -> None:
    """It went on from a checkpoint, in so many jobs, to the same weights, and left nothing private behind."""
    assert work.went_on(), work.log()
    assert len(work.submitted()) == jobs, work.said
    assert work.weights() == undisturbed.weights()
    assert work.steps_logged() == undisturbed.steps_logged()
    assert not work.state.exists() and not work.state.with_name(".pretrain.lock").exists()


def test_scancel(make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]) -> None:
    work = make()
    process = work.start()
    work.reach(30, process)
    cluster.run("scancel", work.job())
    injected["scancel"] += 1
    work.finish(process)
    unharmed(work, undisturbed, jobs=2)


def test_warned_requeued_and_preempted(make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]) -> None:
    """One job through all: none of them costs a retry."""
    work = make(partition="spare")
    process = work.start()
    work.reach(20, process)
    # What --signal sends, and to whom: to the processes of the job's steps.
    cluster.run("scancel", "--signal=USR1", work.job())
    injected["SLURM's warning signal"] += 1
    work.restarted(1)
    work.reach(40, process)
    cluster.run("scontrol", "requeue", work.job())
    injected["scontrol requeue"] += 1
    work.restarted(2)
    work.reach(60, process)
    all_of_it = ["sbatch", "-p", "gpu", "-N2", "-n2", "-c16", "-o", "/dev/null", "--wrap", "sleep 2"]
    cluster.run(*all_of_it)
    injected["preemption by a higher partition"] += 1
    work.restarted(3)
    work.finish(process)
    assert "Trying to restart" not in work.said
    unharmed(work, undisturbed, jobs=1)


def test_node_down(make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]) -> None:
    work = make()
    process = work.start()
    work.reach(30, process)
    node = work.of_job("NodeList")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    injected["node set down"] += 1
    try:
        work.restarted(1)
        assert work.of_job("NodeList") != node
        work.finish(process)
    finally:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    unharmed(work, undisturbed, jobs=1)


def test_time_limit(make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]) -> None:
    """Near twice in a row; the training stands still meanwhile, for it would be done."""
    work = make(jobs="minutes: 10")
    process = work.start()
    for times in (1, 2):

        def restarts(so_far: int = times) -> bool:
            return int(work.of_job("Restarts")) >= so_far

        work.reach(1, process)
        cluster.wait("a while", lambda done=restarts, step=20 * times: done() or work.step() >= step, 90)
        # Its --signal asks for a warning two minutes before the end: the second start may have it from the beginning.
        assert "--signal=USR1@120" in work.said
        if not restarts():
            trainer = work.trainer()
            os.kill(trainer, signal.SIGSTOP)
            cluster.run("scontrol", "update", f"JobId={work.job()}", "TimeLimit=2")
            # SLURM wakes what it warns. What was warned before it listened looks at the clock.
            seen = Path(f"/proc/{trainer}")
            end = time.time() + 100
            cluster.wait(
                "the training to save itself", lambda seen=seen, end=end: not seen.exists() or time.time() > end, 120
            )
            with suppress(ProcessLookupError):
                os.kill(trainer, signal.SIGCONT)
        injected["time limit near"] += 1
        work.restarted(times, *(["TimeLimit=60"] if times == 2 else []))
    work.finish(process)
    assert "Trying to restart" not in work.said
    unharmed(work, undisturbed, jobs=1)


def test_controller_out_for_40_seconds(make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]) -> None:
    """The training ends meanwhile."""
    work = make()
    process = work.start()
    work.reach(20, process)
    with cluster.outage():
        injected["controller stopped for 40 s"] += 1
        time.sleep(40)
        assert work.output.exists()
    work.finish(process)
    assert len(work.submitted()) == 1 and work.weights() == undisturbed.weights()


def test_out_of_memory(make: Make, undisturbed: Work, injected: Counter[str]) -> None:
    work = make(jobs="memory_gb: 0.5")
    work.finish(work.start())
    jobs = work.submitted()
    injected["out of memory"] += len(jobs) - 1
    given = [work.of_job("MinMemoryNode", job) for job in jobs]
    assert given in (["512M", "1G"], ["512M", "1G", "1.5G"])
    assert work.weights() == undisturbed.weights()


def test_snakemake_killed_and_started_beside_its_orphan(
    make: Make, undisturbed: Work, cluster: Cluster, injected: Counter[str]
) -> None:
    work = make()
    # Snakemake would compare with how `tiny` made this, once.
    forget = work.snakemake("--cleanup-metadata", str(work.output.relative_to(work.folder)))
    subprocess.run(forget, env=work.env, cwd=work.folder, check=True, capture_output=True)
    process = work.start()
    work.reach(20, process)
    orphan = work.job()
    # It would be done before all has been tried.
    trainer = work.trainer()
    os.kill(trainer, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    injected["Snakemake killed with SIGKILL"] += 1
    subprocess.run(work.snakemake("--unlock"), env=work.env, cwd=work.folder, check=True, capture_output=True)
    # Snakemake refuses to work beside it.
    said = work.finish(work.start(), code=2)
    assert said.splitlines()[-1].startswith(f"error: jobs {orphan} of an earlier Snakemake still work here;")
    # So does a trainer that somebody starts by hand.
    results = work.results
    rival = cluster.run(
        "sbatch", "--parsable", "-o", str(work.folder / "rival.txt"), "--wrap",
        f"{Path(sys.executable).with_name('prior')} pretrain --preset {work.preset} --run {RUN} "
        f"--corpus {results}/corpus --tokens {results}/tokens --tokenizer {results}/tokenizer "
        f"--llm {results}/backbones/llm --vision {results}/backbones/vision --scores {results}/scores/base "
        f"--runs {work.folder}/elsewhere --state {results}/.state",
    ).strip()  # fmt: skip
    told = work.folder / "rival.txt"
    waiting = f"waiting for process {trainer} of job {orphan} on n"
    cluster.wait("the rival to see the orphan", lambda: told.exists() and waiting in told.read_text(), 60)
    cluster.run("scancel", rival)
    os.kill(trainer, signal.SIGCONT)
    cluster.wait("the orphan's end", lambda: work.of_job("JobState", orphan) == "COMPLETED", 120)
    # What it finished is kept.
    assert "Nothing to be done" in work.finish(work.start())
    assert work.weights() == undisturbed.weights() and work.steps_logged() == undisturbed.steps_logged()
    assert not (work.folder / "elsewhere").exists()


def test_disk_full(make: Make, undisturbed: Work, injected: Counter[str]) -> None:
    work = make()
    disk = work.results / ".state"
    disk.mkdir()
    # Two checkpoints find room, a third beside them does not: each holds the model and two moments of each weight.
    size = (undisturbed.output / "final/model.safetensors").stat().st_size
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={6 * size // 1024}k", "tmpfs", str(disk)], check=True)
    try:
        said = work.finish(work.start(), code=2)
        injected["disk full"] += 1
        mistake = said.splitlines()[-1]
        assert mistake.startswith("error: ") and "cannot be written" in mistake and "make room" in mistake, said[-2000:]
        assert "Trying to restart" not in said
        whole = [path.parent.name for path in work.state.glob("checkpoint-*/whole")]
        assert whole and [path.name for path in work.state.glob("checkpoint-*")] == whole
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        work.finish(work.start())
        unharmed(work, undisturbed, jobs=1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
