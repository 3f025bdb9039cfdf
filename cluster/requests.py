"""From what a preset wishes to what SLURM is asked for: resources of rules, and the command that starts a training.

The names of resources are those of Snakemake's SLURM plugin, but for `launch`, which is the rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cluster.settings import Cluster
from prior.config import Job, Jobs, ParallelJob, Preset
from prior.errors import UserError
from prior.stopping import lead

# They are warned before their time is over, save, and are started again.
TRAININGS = ("llm", "vision", "reference", "pretrain", "tune")
# SLURM sends its warning up to a minute early, and a job takes a while before it can hear one.
SHORTEST_WARNED = 10

Resource = int | str | Callable[..., int]


def check(preset: Preset, cluster: Cluster) -> None:
    """Refuse requests that no node of the cluster can grant.

    Raises
    ------
    UserError
        Naming the job, what it asks for and what a node has.
    """
    for kind in Jobs.model_fields:
        job = getattr(preset.jobs, kind)
        node = cluster.node_of(job.gpus)
        if node is None:
            continue
        asked = {"gpus": job.gpus, "memory_gb": job.memory_gb, "cpus": _cpus(job, preset.threads(kind))}
        for name, value in asked.items():
            if value > (most := getattr(node, name)):
                remedy = "use fewer threads or processes" if name == "cpus" else f"lower jobs.{kind}.{name}"
                raise UserError(
                    f"preset '{preset.name}': {kind} asks for {value:g} {name} of a node, but the cluster file says "
                    f"that nodes have {most:g}; {remedy}, or mend the cluster file"
                )


def request(preset: Preset, kind: str, cluster: Cluster) -> dict[str, Resource]:
    """The resources of a rule whose jobs are of a kind (see `prior.config.Jobs`)."""
    job: Job = getattr(preset.jobs, kind)
    chained = kind in TRAININGS
    node = cluster.node_of(job.gpus)

    def mem_mb(wildcards: Any, attempt: int) -> int:
        """More with every attempt, up to what a node has."""
        asked = math.ceil(job.memory_gb * 1024) * attempt
        return min(asked, int(node.memory_gb * 1024)) if node else asked

    def runtime(wildcards: Any, attempt: int) -> int:
        # A chain of jobs needs no more time to come to its end.
        asked = job.minutes if chained else job.minutes * attempt
        return min(asked, cluster.max_minutes or asked)

    found: dict[str, Resource | None] = {
        "mem_mb": mem_mb,
        "runtime": runtime,
        "gpu": job.gpus,
        # Left to itself, SLURM may find the GPUs of a job on several nodes.
        "nodes": 1 if job.gpus else None,
        "cpus_per_task": _cpus(job, preset.threads(kind)),
        "slurm_partition": cluster.gpu_partition or cluster.partition if job.gpus else cluster.partition,
        "slurm_account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.gpu_constraint or cluster.constraint if job.gpus else cluster.constraint,
        "gpu_model": cluster.gpu_model if job.gpus else None,
    }
    if chained:
        found["launch"] = launcher(preset, kind)
    extra = []
    shortest = min(job.minutes, cluster.max_minutes or job.minutes)
    if chained and shortest >= SHORTEST_WARNED:
        extra.append(f"--signal=USR1@{lead(60 * shortest):.0f}")
    if isinstance(job, ParallelJob) and job.nodes > 1:
        # With `mpi` the plugin leaves `srun` to the rule, and reads `gpu` as GPUs of the whole job.
        found |= {"mpi": "srun", "nodes": job.nodes, "tasks": job.nodes, "gpu": 0, "gpu_model": None}
        if job.gpus:
            extra.append(f"--gpus-per-node={cluster.gpu_model + ':' if cluster.gpu_model else ''}{job.gpus}")
    if extra:
        found["slurm_extra"] = " ".join(extra)
    return {name: value for name, value in found.items() if value is not None}


def launcher(preset: Preset, kind: str) -> str:
    """The shell words before the arguments of `prior`: itself, or a torchrun on each node that starts it.

    On several nodes the first of them is where processes meet, at a port that follows from the job's id.
    """
    job: Job = getattr(preset.jobs, kind)
    if not isinstance(job, ParallelJob) or job.nodes * job.per_node == 1:
        return "exec prior"
    # After `--` torchrun leaves arguments alone, which it else takes for abbreviations of its own.
    # It does not know the signal of the warning, which is for the processes that it starts.
    torchrun = f"trap '' USR1; exec torchrun --nproc-per-node={job.per_node}"
    if job.nodes == 1:
        return f"{torchrun} --standalone -m -- prior.cli"
    meet = (
        f"--nnodes={job.nodes} --node-rank=$SLURM_NODEID --master-addr=$SLURM_LAUNCH_NODE_IPADDR "
        "--master-port=$((20000 + SLURM_JOB_ID % 20000))"
    )
    inner = f'{torchrun} {meet} -m -- prior.cli "$@"'.replace("'", "'\\''")
    return (
        f"exec srun --nodes={job.nodes} --ntasks={job.nodes} --cpus-per-task={_cpus(job, preset.threads(kind))} "
        f"--kill-on-bad-exit bash -c '{inner}' prior"
    )


def _cpus(job: Job, threads: int) -> int:
    return threads * (job.per_node if isinstance(job, ParallelJob) else 1)
