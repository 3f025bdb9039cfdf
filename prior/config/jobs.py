"""What jobs ask of a cluster, by their kind: settings of a preset that are no part of any result."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from prior.config.fields import Count, Positive, Settings


class Job(Settings):
    """What a kind of job asks of a cluster, on its first attempt. None of this is part of a result.

    Attributes
    ----------
    memory_gb
        Of each node.
    minutes
        Wall-clock time. A training that needs more saves in time and is started again.
    loaders
        Of a training: further processes beside each one, which read and prepare pictures.
    """

    memory_gb: Annotated[float, Field(gt=0)] = 4.0
    minutes: Positive = 60
    loaders: Count = 0

    @property
    def gpus_per_node(self) -> int:
        return 0

    @property
    def processes_per_node(self) -> int:
        return 1


class SingleJob(Job):
    """A job of one process, with a GPU or without."""

    gpus: Annotated[int, Field(ge=0, le=1)] = 0

    @property
    def gpus_per_node(self) -> int:
        return self.gpus


class ParallelJob(Job):
    """A training on several processes: one on each GPU, or `processes` on each node where there are no GPUs.

    Attributes
    ----------
    gpus
        Of each node.
    fsdp
        Each process keeps a share of the weights and of what the optimizer knows of them (FSDP, full shard).
    gradient_checkpointing
        Compute activations anew in the backward pass, which saves memory and costs time.
    """

    nodes: Positive = 1
    gpus: Count = 0
    processes: Positive = 1
    fsdp: bool = False
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_each(self) -> ParallelJob:
        if self.gpus and self.processes not in (1, self.gpus):
            raise ValueError(f"processes: {self.gpus} GPUs take one process each; leave this out")
        return self

    @property
    def gpus_per_node(self) -> int:
        return self.gpus

    @property
    def processes_per_node(self) -> int:
        return self.gpus or self.processes


class Jobs(Settings):
    """Requests by kind of job; `small` is all that prepares, scores and draws."""

    small: Job = Job()
    llm: ParallelJob = ParallelJob()
    vision: SingleJob = SingleJob()
    reference: ParallelJob = ParallelJob()
    scores: SingleJob = SingleJob()
    pretrain: ParallelJob = ParallelJob()
    tune: ParallelJob = ParallelJob()
    predict: SingleJob = SingleJob()
