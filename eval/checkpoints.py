"""Names of checkpoints and of their prediction files: the only keys that predicting and scoring share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from prior.config import parse_tokens
from prior.errors import UserError

_CHECKPOINT = re.compile(r"([^/]+)/([^/]+)/([^/]+)/seed(\d+)/(pretrain|tuned)/(?:final|step(\d+))")


def prediction_file(folder: Path, checkpoint: str, benchmark: str, picture: bool = True) -> Path:
    """Where a checkpoint's answers to a benchmark lie; `picture` tells whether it was shown the pictures."""
    return folder / checkpoint / f"{benchmark}{'' if picture else '.no_picture'}.tsv"


def is_final(checkpoint: str) -> bool:
    """Whether it is the last of its stage; those on the way are asked with pictures alone."""
    return checkpoint.endswith("/final")


def parse_checkpoint(checkpoint: str, runs: Path | None) -> dict[str, Any]:
    """The keys ``arch, objective, scale_tokens, seed, stage, step`` of a checkpoint's name.

    ``final`` is the step that the run's own ``run.yaml`` names; for that `runs` is needed.

    Raises
    ------
    UserError
        If the name has another form, or the run's description is missing or broken.
    """
    match = _CHECKPOINT.fullmatch(checkpoint)
    if not match:
        raise UserError(
            f"checkpoint '{checkpoint}': write it as hlvlm/ntp/40k/seed0/tuned/final, or with step<n> for final"
        )
    arch, objective, scale, seed, stage, step = match.groups()
    try:
        tokens = parse_tokens(scale)
    except ValueError as error:
        raise UserError(f"checkpoint '{checkpoint}': {error}") from None
    keys = {"arch": arch, "objective": objective, "scale_tokens": tokens, "seed": int(seed), "stage": stage}
    return keys | {"step": int(step) if step else _last_step(checkpoint, runs)}


def _last_step(checkpoint: str, runs: Path | None) -> int:
    if runs is None:
        raise UserError(f"checkpoint '{checkpoint}': which step is final stands in its run.yaml; give --runs")
    path = runs / Path(checkpoint).parent / "run.yaml"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; train the run first")
    steps = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("steps")
    if not isinstance(steps, int):
        raise UserError(f"{path}: 'steps' is not a number of steps but {steps!r}; train the run again")
    return steps
