"""The command line of the measurements: ``python -m eval.bench --help``."""

from __future__ import annotations

import typer

from eval.bench.compare import method
from eval.bench.coverage import coverage
from eval.bench.predict import predict
from eval.bench.profile import profile
from prior.console import run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def bench() -> None:
    """Measurements of speed and memory. By hand, on an idle machine."""


app.command()(method)
app.command()(coverage)
app.command()(predict)
app.command()(profile)

if __name__ == "__main__":
    run(app)
