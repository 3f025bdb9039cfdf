"""``python -m eval``: one command per stage of the measuring."""

from eval.cli import app
from prior.console import run

run(app)
