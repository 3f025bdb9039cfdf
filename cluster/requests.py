"""From what a preset wishes to what SLURM is asked for: resources of rules, and the command that starts a training.

The names of resources are those of Snakemake's SLURM plugin, but for `launch`, which is the rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cluster.settings import Cluster
from prior.config import Preset
from prior.config.jobs import Job, Jobs, ParallelJob
from prior.errors import UserError
from prior.stopping import lead

# They are warned before their time is over, save, and are started again.
TRAININGS = ("llm", "vision", "reference", "pretrain", "tune")
# SLURM sends its warning up to a minute early, and a job takes a while before it can hear one.
SHORTEST_WARNED = 10

Resource = int | str | Callable[..., int]


def check(preset: Preset, cluster: Cluster) -> None:
    """Refuse requests that the cluster cannot grant, and processes among which rows cannot be dealt out.

    Raises
    ------
    UserError
        Naming the job, what it asks for and what there is.
    """
    for kind in Jobs.model_fields:
        job: Job = getattr(preset.jobs, kind)
        if kind not in TRAININGS and job.minutes > (longest := cluster.max_minutes or job.minutes):
            raise UserError(
                f"preset '{preset.name}': {kind} asks for {job.minutes} minutes, but the cluster file says that jobs "
                f"may have {longest}; lower jobs.{kind}.minutes, or mend the cluster file"
            )
        count = job.nodes * job.processes_per_node if isinstance(job, ParallelJob) else 1
        for rows in (training.rows_per_step for training in preset.trainings.get(kind, [])):
            if rows % count:
                raise UserError(
                    f"preset '{preset.name}': {kind} asks for {count} processes, among which its {rows} rows per step "
                    f"cannot be dealt out; make rows_per_step a multiple of {count}, or change jobs.{kind}"
                )
        node = cluster.node_of(job.gpus_per_node)
        if node is None:
            continue
        asked = {"gpus": job.gpus_per_node, "memory_gb": job.memory_gb, "cpus": preset.cores(kind)}
        for name, value in asked.items():
            if value > (most := getattr(node, name)):
                remedy = "use fewer threads or processes" if name == "cpus" else f"lower jobs.{kind}.{name}"
                raise UserError(
                    f"preset '{preset.name}': {kind} asks for {value:g} {name} of a node, but the cluster file says "
                    f"that nodes have {most:g}; {remedy}, or mend the cluster file"
                )


def request(preset: Preset, kind: str, cluster: Cluster) -> dict[str, Resource]:
    """The resources of a rule whose jobs are of a kind (see `prior.config.jobs.Jobs`), as its keyword arguments.

    What grows with the attempt is a function of wildcards and attempt.
    """
    job: Job = getattr(preset.jobs, kind)
    chained = kind in TRAININGS
    node = cluster.node_of(job.gpus_per_node)

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
        "gpu": job.gpus_per_node,
        # Left to itself, SLURM may find the GPUs of a job on several nodes.
        "nodes": 1 if job.gpus_per_node else None,
        "cpus_per_task": preset.cores(kind),
        "slurm_partition": cluster.gpu_partition or cluster.partition if job.gpus_per_node else cluster.partition,
        "slurm_account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.gpu_constraint or cluster.constraint if job.gpus_per_node else cluster.constraint,
        "gpu_model": cluster.gpu_model if job.gpus_per_node else None,
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
    if not isinstance(job, ParallelJob) or job.nodes * job.processes_per_node == 1:
        return "exec prior"
    # After `--` torchrun leaves arguments alone, which it else takes for abbreviations of its own.
    # It does not know the signal of the warning, which is for the processes that it starts.
    torchrun = f"trap '' USR1; exec torchrun --nproc-per-node={job.processes_per_node}"
    if job.nodes == 1:
        return f"{torchrun} --standalone -m -- prior.cli"
    meet = (
        f"--nnodes={job.nodes} --node-rank=$SLURM_NODEID --master-addr=$SLURM_LAUNCH_NODE_IPADDR "
        "--master-port=$((20000 + SLURM_JOB_ID % 20000))"
    )
    inner = f'{torchrun} {meet} -m -- prior.cli "$@"'.replace("'", "'\\''")
    return (
        f"exec srun --nodes={job.nodes} --ntasks={job.nodes} --cpus-per-task={preset.cores(kind)} "
        f"--kill-on-bad-exit bash -c '{inner}' prior"
    )
