"""``python -m eval.vlmevalkit``, in the environment that holds VLMEvalKit: the stages of a run that need it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.vlmevalkit.official import official_table
from eval.vlmevalkit.prompts import export
from eval.vlmevalkit.score import score_checkpoints
from prior.config import Evaluation
from prior.errors import UserError
from prior.files import whole, write_json
from prior.presets import load_preset


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.vlmevalkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    asking = commands.add_parser("prompts", help="check a benchmark and write what VLMEvalKit asks, as JSON lines")
    asking.add_argument("--benchmark", type=Path, required=True, help="a benchmark TSV")
    asking.add_argument(
        "--answer", choices=("generate", "likelihood", "caption"), default="generate", help="how models answer"
    )
    asking.add_argument("--official", action="store_true", help="the file is not ours: take its cells as they are")
    asking.add_argument("--cache", type=Path, required=True, help="folder in which prompts are kept by content")
    asking.add_argument("--out", type=Path, required=True, help="file to write")

    scoring = commands.add_parser("score", help="score answers to one benchmark into metrics and items")
    scoring.add_argument("--benchmark", type=Path, required=True, help="a benchmark TSV")
    scoring.add_argument("--official", action="store_true", help="the file is not ours: take its cells as they are")
    scoring.add_argument("--predictions", type=Path, required=True, help="folder of <checkpoint>/<benchmark>.tsv")
    scoring.add_argument(
        "--checkpoint", action="append", default=[], help="hlvlm/ntp/40k/seed0/tuned/final; repeat for more"
    )
    scoring.add_argument("--runs", type=Path, help="folder of <run>/<stage>/run.yaml, which names the final step")
    scoring.add_argument("--no-picture", action="store_true", help="score the answers without pictures, too")
    scoring.add_argument(
        "--degenerate", type=int, default=0, metavar="SEEDS", help="score random and constant answers, too"
    )
    scoring.add_argument("--metrics", type=Path, required=True, help="CSV file to write")
    scoring.add_argument("--items", type=Path, required=True, help="Parquet file to write")

    running = commands.add_parser(
        "run",
        help="let VLMEvalKit ask a checkpoint in its own loop; takes arguments of vlmeval.run",
        allow_abbrev=False,
    )
    running.add_argument("--checkpoint", type=Path, required=True, help="a folder as hlvlm/ntp/40k/seed0/tuned/final")
    running.add_argument("--benchmarks", type=Path, required=True, help="folder of <benchmark>.tsv")
    running.add_argument("--benchmark", action="append", default=[], help="MME; repeat for more")
    running.add_argument("--preset", help="whose settings of evaluation are used, and whose benchmarks by default")
    running.add_argument("--predictions", type=Path, help="folder of <benchmark>.tsv: score these instead of asking")
    running.add_argument("--name", help="what VLMEvalKit is to call the checkpoint")
    running.add_argument("--work-dir", type=Path, required=True, help="folder to write")

    listing = commands.add_parser("official", help="write VLMEvalKit's table of benchmarks: address, md5, class")
    listing.add_argument("--out", type=Path, required=True, help="JSON file to write")

    given, further = parser.parse_known_args(arguments)
    if further and given.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    try:
        if given.command == "prompts":
            export(given.benchmark, given.out, given.cache, given.answer, given.official)
        elif given.command == "run":
            # It loads models, and torch takes seconds that no other command needs.
            from eval.vlmevalkit.launch import asked, launch, readable_name

            preset = load_preset(given.preset) if given.preset else None
            sheets = launch(
                given.checkpoint,
                [given.benchmarks / f"{name}.tsv" for name in asked(preset, given.benchmark)],
                given.work_dir,
                given.name or readable_name(given.checkpoint),
                preset.evaluation if preset else Evaluation(),
                given.predictions,
                further,
            )
            for name, sheet in sheets.items():
                print(f"{name}\n{sheet.to_string(index=False)}\n")
        elif given.command == "official":
            write_json(given.out, official_table())
        else:
            metrics, items = score_checkpoints(
                given.benchmark,
                given.predictions,
                given.checkpoint,
                given.runs,
                given.no_picture,
                given.degenerate,
                given.official,
            )
            with whole(given.metrics) as table, whole(given.items) as answers:
                metrics.to_csv(table, index=False)
                items.to_parquet(answers, index=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
