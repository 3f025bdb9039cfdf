"""Speed of our loop against VLMEvalKit's own: ``python -m eval.bench predict``, by hand, on an idle machine.

Both ask the same checkpoint the same questions with the same number of threads, in turns. What is timed is the way from
a benchmark in memory, pictures encoded, to a prediction for each row: `eval.predict.predict` with its journal here,
`infer_data_job` with its pickles there. Starting processes, importing, loading the checkpoint and reading the benchmark
are not. Each loop asks each benchmark once before, uncounted; the picture files that VLMEvalKit's loop makes then stay,
while ours decodes every picture anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from eval import display
from eval.display import Display, number
from prior.config import Evaluation
from prior.errors import UserError
from prior.files import whole, write_text

SCORER = Path(__file__).resolve().parents[2] / ".venv-vlmevalkit/bin/python"


def predict(
    checkpoint: Annotated[list[Path], typer.Option(help="A folder as hlvlm/ntp/40k/seed0/tuned/final; repeatable.")],
    benchmarks: Annotated[Path, typer.Option(help="Folder of <benchmark>.tsv.")],
    out: Annotated[Path, typer.Option(help="CSV of all rounds; their ratios go to <out>_ratio.csv beside it.")],
    benchmark: Annotated[list[str] | None, typer.Option(help="One of them; repeatable; all by default.")] = None,
    items: Annotated[int, typer.Option(help="Rows of each benchmark.")] = 300,
    rounds: Annotated[int, typer.Option(help="Times that each loop is timed.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of either process.")] = 2,
    preset: Annotated[str | None, typer.Option(help="Whose settings of evaluation are used.")] = None,
    vlmevalkit_python: Annotated[Path, typer.Option(help="Python of the environment with VLMEvalKit.")] = SCORER,
) -> None:
    """Time both loops on the same questions, in turns."""
    import torch

    from prior.presets import load_preset

    settings = (load_preset(preset).evaluation if preset else Evaluation()).model_copy(update={"threads": threads})
    torch.set_num_threads(threads)
    names = benchmark or sorted(path.stem for path in benchmarks.glob("*.tsv"))
    rows: list[dict[str, Any]] = []
    for folder in checkpoint:
        rows += race(folder, [benchmarks / f"{name}.tsv" for name in names], items, rounds, settings, vlmevalkit_python)
    table = pd.DataFrame(rows)
    with whole(out) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.4g")
    summary = ratios(table)
    with whole(out.with_name(f"{out.stem}_ratio.csv")) as temporary:
        summary.to_csv(temporary, index=False, lineterminator="\n", float_format="%.4g")
    text = display.markdown([show(table, summary)])
    write_text(out.with_name(f"{out.stem}_ratio.md"), text)
    print(text)


def race(
    checkpoint: Path, benchmarks: list[Path], items: int, rounds: int, settings: Evaluation, python: Path
) -> list[dict[str, Any]]:
    """A row for each benchmark, round and loop.

    Raises
    ------
    RuntimeError
        If the loops answer differently, for then their times say nothing.
    """
    from eval.answers import Answers
    from eval.predict import Questions, load_model
    from eval.predict import predict as ask
    from eval.tsv import read_benchmark

    model = load_model(checkpoint)
    architecture = type(model.architecture).__name__.lower()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / path.name for path in benchmarks]
        for whole_benchmark, path in zip(benchmarks, paths, strict=True):
            read_benchmark(whole_benchmark).head(items).to_csv(path, sep="\t", index=False)

        def ours(path: Path) -> tuple[float, list[str]]:
            # New each time, so that no picture is kept from the last round.
            questions = Questions.read(path, path.with_suffix(".jsonl"), "generate")
            answers = Answers(path.with_suffix(".answers"), "")
            start = time.perf_counter()
            answered = ask(model, questions, True, settings, answers)
            seconds = time.perf_counter() - start
            answers.remove()
            return seconds, list(answered["prediction"])

        with their_loop(python, checkpoint, paths, settings) as theirs:
            for number in range(rounds + 1):
                for path in paths:
                    answered = {}
                    for loop, run in (("ours", ours), ("vlmevalkit", theirs)):
                        seconds, answered[loop] = run(path)
                        count = len(answered[loop])
                        row = {"architecture": architecture, "benchmark": path.stem, "items": count}
                        row |= {"threads": settings.threads, "loop": loop, "round": number}
                        rows.append(row | {"seconds": seconds, "items_per_second": count / seconds})
                    if answered["ours"] != answered["vlmevalkit"]:
                        raise RuntimeError(f"{checkpoint}: the loops answer {path.stem} differently")
    return [row for row in rows if row["round"]]


@contextmanager
def their_loop(python: Path, checkpoint: Path, benchmarks: list[Path], settings: Evaluation) -> Iterator[Any]:
    """A function that has VLMEvalKit's loop run over a benchmark, in a process that stays alive."""
    if not python.is_file():
        raise UserError(f"{python} is missing: run `bash envs/vlmevalkit.sh .venv .venv-vlmevalkit`")
    call: list[str | Path] = [python, "-m", "eval.vlmevalkit.rounds", "--checkpoint", checkpoint]
    call += ["--max-new-tokens", str(settings.max_new_tokens), "--threads", str(settings.threads), *benchmarks]
    # The number of threads is set there, for either process alike.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answer() -> Any:
            if not (line := stdout.readline()):
                raise RuntimeError(f"{checkpoint}: VLMEvalKit's loop ended with code {process.wait()}")
            return json.loads(line)

        def run(path: Path) -> tuple[float, list[str]]:
            stdin.write(f"{path}\n")
            stdin.flush()
            answered = answer()
            return answered["seconds"], answered["predictions"]

        answer()
        yield run
        stdin.close()


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast our loop is: median, least and greatest of the rounds' ratios.

    Benchmark ``all`` is the ratio of the rounds' total times.
    """
    keys = ["architecture", "benchmark", "threads", "round"]
    total = table.groupby(["architecture", "threads", "loop", "round"], as_index=False)[["items", "seconds"]].sum()
    seconds = pd.concat([table, total.assign(benchmark="all")]).pivot(index=keys, columns="loop", values="seconds")
    ratio = (seconds["vlmevalkit"] / seconds["ours"]).groupby(keys[:-1], sort=False)
    return ratio.agg(["median", "min", "max"]).reset_index()


def show(table: pd.DataFrame, summary: pd.DataFrame) -> Display:
    """The ratios beside both loops' questions per second."""
    keys = ["architecture", "benchmark"]
    total = table.groupby([*keys, "loop"])[["items", "seconds"]].sum()
    every = table.assign(benchmark="all").groupby([*keys, "loop"])[["items", "seconds"]].sum()
    rate = pd.concat([total, every]).eval("items / seconds").unstack("loop")
    rows = [
        {
            "": f"{display.name(row.architecture)}, {row.benchmark}",
            "ours, questions/s": number(rate.ours[row.architecture, row.benchmark], 0),
            "VLMEvalKit's, questions/s": number(rate.vlmevalkit[row.architecture, row.benchmark], 0),
            "ratio": f"{row.median:.1f} ({row.min:.1f} to {row.max:.1f})",
        }
        for row in summary.itertuples()
    ]
    note = (
        f"The same checkpoint and questions, {table.threads.iloc[0]} threads each, the loops in turns; ratio: median, "
        f"least and greatest of {table['round'].nunique()} rounds. Both gave the same answers."
    )
    return Display("Our loop and VLMEvalKit's", pd.DataFrame(rows), note)
