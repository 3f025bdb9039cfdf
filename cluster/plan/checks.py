"""What a reader should mend in a preset before anything is submitted."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.plan.jobs import Task, largest
from cluster.plan.work import Work
from prior.config import parse_tokens


def warnings(work: Work, tasks: Sequence[Task]) -> list[str]:
    """One line for each mistake: what it is, and the remedy. `tasks` are all jobs of the preset."""
    found = []
    for cell in work.cells:
        asked = work.preset.kept_steps(cell.objective, cell.scale)
        limit = work.preset.objectives[cell.objective].steps
        if asked and asked[-1] >= cell.taken:
            found.append(
                f"trajectory: until {asked[-1]} is not before the last step, {cell.taken}, of {cell.arch} at "
                f"{cell.scale}; lower it, or rows_per_step"
            )
        if limit and limit > cell.steps:
            found.append(
                f"objectives.{cell.objective}: {limit} steps are more than the {cell.steps} of {cell.arch} at "
                f"{cell.scale}; lower them"
            )
    most, have = work.preset.scales[-1], work.captions * work.given.caption_tokens
    if parse_tokens(most) > have:
        found.append(
            f"scales: {most} caption tokens are asked for, but {work.captions:,} captions of "
            f"{work.given.caption_tokens:g} have {have:,.0f}; lower the scale, or give --assume caption_tokens=…"
        )
    for name, task in largest(tasks).items():
        if task.gpus and task.peak > work.given.gpu_memory_gb * 1e9:
            found.append(
                f"{name}: needs {task.peak / 1e9:.0f} GB of a GPU that has {work.given.gpu_memory_gb:g}; "
                "lower row_tokens, or share it out by jobs: gpus and fsdp, or gradient_checkpointing"
            )
    return list(dict.fromkeys(found))
