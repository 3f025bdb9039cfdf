"""One run on several processes, as torchrun starts them: which of them this is, who writes files, sums over all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch

# The first process writes files alone while the others wait; of one that died torchrun tells.
PATIENCE = timedelta(days=7)


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which of the processes this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this process is the one that writes files and speaks to SLURM; alone it always is."""
    return index() == 0


def join() -> None:
    """Meet the other processes of this run; to be called before any of them waits for another."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def wait() -> None:
    """Until all processes have come here."""
    if count() > 1:
        torch.distributed.barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place; all have to call it."""
    if count() > 1:
        torch.distributed.all_reduce(values)
    return values


def any_of(value: bool, device: torch.device) -> bool:
    """Whether it is true in any of the processes, so that all decide alike."""
    return bool(total(torch.tensor([float(value)], device=device)).item())


def first_only(context: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    """A context that the first process enters and the others do without."""
    return context() if first() else nullcontext()
