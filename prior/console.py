"""What the command lines share: options, the exit codes of mistakes and interruptions, threads, progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prior import processes, slurm, stopping
from prior.config import Preset
from prior.errors import TryAgain, UserError
from prior.files import NO_ROOM
from prior.presets import load_preset

PresetName = Annotated[str, typer.Option("--preset", help="Name in workflow/presets, or the path of a YAML file.")]
Folder = Annotated[Path, typer.Option()]
Runs = Annotated[list[str], typer.Option("--run", help="arch/objective/scale/seedK; may be given several times.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
State = Annotated[Path, typer.Option("--state", help="Private folder for checkpoints to resume from.")]


def run(application: typer.Typer) -> None:
    """Run a command line: a user's mistake is one line on standard error and exit code 2."""
    try:
        if stopping.too_late():
            print("there is no time left; start again to go on", file=sys.stderr)
            sys.exit(stopping.EXIT_CODE)
        application()
    except TryAgain as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or Path.cwd()
        print(f"error: {where}: there is no room left on its disk; make room and start again", file=sys.stderr)
        sys.exit(2)
    except stopping.Stopped as stopped:
        if processes.first():
            job = slurm.own_job()
            again = f"job {job} starts again by itself" if job and slurm.requeue(job) else "start again to go on"
            print(f"{stopped}; {again}", file=sys.stderr)
        elif slurm.own_job():
            # A process that ends ends the others, and the first one has still to ask for the new start.
            time.sleep(3 * slurm.PATIENCE)
        sys.exit(stopping.EXIT_CODE)


def checked_preset(name: str) -> Preset:
    """A preset, once it is certain that its objectives exist with these parameters."""
    from prior.weighting import check_objective

    preset = load_preset(name)
    for key, entry in preset.objectives.items():
        check_objective(key, entry.kind, entry.parameters())
    return preset


def use_threads(count: int) -> None:
    """Fix the number of threads of this job: results are the same bit for bit whatever else the machine does."""
    import torch

    torch.set_num_threads(count)
    torch.set_num_interop_threads(1)


def begin_long_work(threads: int) -> None:
    """Fix the number of threads, and heed signals and time limits from here on."""
    use_threads(threads)
    stopping.listen()


def progress(items: Any, total: int | None, what: str) -> Any:
    """The items, with a bar of how many are done."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, mininterval=1.0)
