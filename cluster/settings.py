"""The cluster file: what differs between clusters, and is nobody else's business."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from prior.config.fields import Count, Positive, Settings
from prior.errors import UserError
from prior.presets import explain, read_yaml


def _model(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", value):
        raise ValueError(f"'{value}' is no GPU model; write its name alone, such as h100, and how many in the preset")
    return value


Size = Annotated[float, Field(gt=0)]


class Node(Settings):
    """The largest request that a node can grant."""

    cpus: Positive
    memory_gb: Size
    gpus: Count = 0


class Cluster(Settings):
    """Where jobs go, and what they need there.

    Attributes
    ----------
    partition, gpu_partition
        Of jobs without and with GPUs; `gpu_partition` is `partition` unless it is given. None: the cluster's default.
    account, qos, constraint
        As in ``sbatch``; `gpu_constraint` takes the place of `constraint` for jobs with GPUs.
    gpu_model
        As in ``--gpus=<model>:<count>``; None: any.
    node, gpu_node
        Sizes, against which requests are checked before anything is submitted; None: not checked.
    max_minutes
        The longest job that may be submitted; None: no limit.
    setup
        Shell lines before every job, such as ``module load``.
    container
        The image in which jobs run with ``--sdm apptainer``.
    """

    partition: str | None = None
    gpu_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_constraint: str | None = None
    gpu_model: Annotated[str, AfterValidator(_model)] | None = None
    node: Node | None = None
    gpu_node: Node | None = None
    max_minutes: Positive | None = None
    setup: list[str] = []
    container: str | None = None

    def node_of(self, gpus: int) -> Node | None:
        return self.gpu_node or self.node if gpus else self.node


def load_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises
    ------
    UserError
        If it does not exist or holds what is no setting.
    """
    if not path.is_file():
        raise UserError(f"cluster file: there is no '{path}'; name one that exists in PRIOR_CLUSTER")
    where = f"cluster file {path.name}"
    try:
        return Cluster.model_validate(read_yaml(path, where))
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(explain(error, Cluster))}") from None
