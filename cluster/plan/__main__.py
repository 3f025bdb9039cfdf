"""``python -m cluster.plan``: what a preset costs, on the screen and in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.plan.assumptions import Assumptions, read_assumptions
from prior.console import PresetName, checked_preset, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def plan(
    preset: PresetName,
    out: Annotated[Path | None, typer.Option(help="A Markdown file for the page, beside the screen.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Another value for an assumption, such as utilisation=0.5 or picture=512x384; may be given several "
            f"times. There are {', '.join(Assumptions.model_fields)}; the page ends with what they are.",
        ),
    ] = None,
) -> None:
    """Say what a preset costs before anything is run: jobs, parameters, tokens, FLOPs, memory, disk and time."""
    from cluster.plan.page import page
    from cluster.plan.work import Work
    from prior.files import write_text

    text = page(Work(checked_preset(preset), read_assumptions(assume or [])))
    print(text, end="")
    if out:
        write_text(out, text)


if __name__ == "__main__":
    run(app)
