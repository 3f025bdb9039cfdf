"""The method's speed and memory: every side in a process of its own, their rounds in turns, one table of ratios."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from eval import display
from eval.bench import sizes
from eval.bench.sizes import SIZES, Size
from eval.display import Display, number
from prior.errors import UserError
from prior.files import whole, write_text

ROOT = Path(__file__).resolve().parents[2]
# Relative difference of the sides' losses from which on they cannot be said to do the same work.
TOLERANCE = {False: 1e-3, True: 3e-2}
SCORED = 320


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes
    ----------
    over, under
        A round's column and side; the ratio is the one's divided by the other's, or the value itself without `under`.
    goal
        A sign and a number, as ``>= 2``.
    """

    measured: str
    against: str
    quantity: str
    over: str
    under: str | None
    goal: str

    def met(self, ratio: float) -> bool:
        sign, bound = self.goal.split()
        return ratio >= float(bound) if sign == ">=" else ratio <= float(bound)


@dataclass(frozen=True)
class Race:
    """Sides whose rounds are taken in turns, and the lines that come of them.

    Attributes
    ----------
    sides
        Arguments of `eval.bench.worker`.
    same
        Whether all losses of all sides must be the same, or, where what they train differs, the very first.
    """

    name: str
    size: Size
    sides: Mapping[str, list[str]]
    lines: tuple[Line, ...]
    same: bool = True


def races(machine: str) -> list[Race]:
    """What is measured on this kind of machine."""
    small, large = SIZES[machine]
    share = 0.45 if small.bf16 else 0.6
    found = []
    for size, times in ((small, 2), (large, 3)):
        stock = "transformers.Trainer, padded batches"
        lines = [
            Line("training, caption tokens/s", stock, "speed", "ours", "stock", f">= {times}"),
            Line("training, peak memory", stock, "peak", "ours", "stock", "<= 0.6"),
            Line("training, share of the peak of matrix products", "", "share", "ours", None, f">= {share}"),
        ]
        ours = ["training", "--loop", "ntp", "--matmul", str(size.matmul)]
        sides = {"ours": ours, "stock": ["training", "--loop", "stock"]}
        found.append(Race(f"training-{size.name}", size, sides, tuple(lines)))
    sides = {loop: ["training", "--loop", loop] for loop in ("prior", "ntp", "cal")}
    step = (
        Line("training step, PRIOR", "NTP", "seconds", "prior", "ntp", "<= 1.02"),
        Line("training step, PRIOR", "CAL", "seconds", "prior", "cal", "<= 0.7"),
    )
    found.append(Race(f"objectives-{small.name}", small, sides, step, same=False))
    for size in (small, large):
        stock = "padded batches of 32, all logits"
        scoring = (
            Line("scoring, caption tokens/s", stock, "speed", "ours", "stock", ">= 3"),
            Line("scoring, peak memory", stock, "peak", "ours", "stock", "<= 0.5"),
        )
        sides = {loop: ["scoring", "--loop", loop, "--captions", str(SCORED)] for loop in ("ours", "stock")}
        found.append(Race(f"scoring-{size.name}", size, sides, scoring))
    ours = ["scoring", "--loop", "ours", "--captions", str(SCORED)]
    tenfold = (
        Line("scoring ten times the captions, time", "once", "seconds", "ten", "one", "<= 10.5"),
        Line("scoring ten times the captions, peak memory", "once", "peak", "ten", "one", "<= 1.1"),
    )
    sides = {"ten": [*ours, "--times", "10"], "one": ours}
    return [*found, Race(f"tenfold-{small.name}", small, sides, tenfold, same=False)]


def method(
    out: Annotated[Path, typer.Option(help="Folder of bench.csv, bench.md and a file of rounds for each race.")] = Path(
        "results/bench"
    ),
    machine: Annotated[str, typer.Option(help=f"Whose sizes of models are taken: {', '.join(SIZES)}.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds of each race; one more comes before.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of each process; all cores by default.")] = os.cpu_count() or 1,
    only: Annotated[list[str] | None, typer.Option(help="A race, as training-32k; repeatable; all by default.")] = None,
    preset: Annotated[str, typer.Option(help="The preset whose jobs Snakemake plans.")] = "paper",
) -> None:
    """Training, scoring and planning against what others do for the same result.

    The table is written anew after each race; lines of races that are not run stay as they were.
    """
    if machine not in SIZES:
        raise UserError(f"--machine {machine}: there are no sizes of that name; take one of {', '.join(SIZES)}")
    every = {race.name: race for race in races(machine)}
    chosen = only or [*every, "planning"]
    if unknown := set(chosen) - {*every, "planning"}:
        raise UserError(f"--only {sorted(unknown)[0]}: there is no such race; take one of {', '.join(every)}, planning")
    _, source = sizes.captions()
    for name in chosen:
        if name == "planning":
            rows, about = plan(preset, rounds), dict[str, Any]()
            lines: tuple[Line, ...] = (
                Line(f"snakemake -n, preset {preset}, seconds", "", "seconds", "planning", None, "<= 10"),
            )
        else:
            race = every[name]
            rows, about = run(race, rounds, threads)
            about |= {"vocabulary": race.size.vocabulary, "image_tokens": race.size.image_tokens}
            about |= {"captions_per_step": sizes.BATCH, "captions_from": source}
            lines = race.lines
        _write(out / f"{name}.csv", rows)
        found = [{"race": name, **summary(rows, line), "threads": threads, **about} for line in lines]
        table = pd.DataFrame(found).assign(machine=about.get("machine") or cpu())
        path = out / "bench.csv"
        if path.is_file():
            others = pd.read_csv(path).fillna({"against": "", "unit": ""})
            table = pd.concat([others[others.race != name], table], ignore_index=True)
        order = [*every, "planning"]
        table = table.sort_values("race", key=lambda races: races.map(order.index), kind="stable", ignore_index=True)
        _write(path, table)
        text = display.markdown([show(table)])
        write_text(out / "bench.md", text)
    print(text)


def run(race: Race, rounds: int, threads: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rounds of a race, a row for each side; and what its processes say of themselves.

    The first round warms up: it is numbered 0 and not counted.

    Raises
    ------
    RuntimeError
        If the losses differ, for then the sides do not do the same work.
    """
    rows = []
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                _worker([*arguments, "--size", race.size.name, "--threads", str(threads)], f"{race.name}, {name}")
            )
            for name, arguments in race.sides.items()
        }
        about = {name: next(worker) for name, worker in workers.items()}
        for place in range(rounds + 1):
            answers = {name: next(worker) for name, worker in workers.items()}
            if race.same or not place:
                check(race, answers)
            for name, answer in answers.items():
                rows.append({"round": place, "side": name, **_columns(answer)})
                print(f"{race.name} {place}/{rounds} {name}: {answer['seconds']:.2f} s", file=sys.stderr, flush=True)
    return pd.DataFrame(rows), next(iter(about.values()))


@contextmanager
def _worker(arguments: list[str], name: str) -> Iterator[Iterator[dict[str, Any]]]:
    """A process of `eval.bench.worker`: first what it says of itself, then a round for each `next`."""
    call = [sys.executable, "-m", "eval.bench.worker", *arguments]
    # The number of threads is an argument.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answers() -> Iterator[dict[str, Any]]:
            while True:
                if not (line := stdout.readline()):
                    code = process.wait()
                    errors.seek(0)
                    raise RuntimeError(f"{name}: ended with code {code}: {errors.read()[-2000:]}")
                yield json.loads(line)
                # Reached by the next `next`: no side works before its turn.
                stdin.write("\n")
                stdin.flush()

        yield answers()
        stdin.close()


def _columns(answer: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a round: seconds, caption tokens and their rate, peak memory in bytes, mean loss in nats."""
    row = {"seconds": answer["seconds"], "tokens": answer["tokens"], "speed": answer["tokens"] / answer["seconds"]}
    row |= {"peak": answer["peak"], "loss": sum(answer["losses"]) / len(answer["losses"])}
    if "matmul" in answer:
        row |= {"flops": answer["flops"], "matmul": answer["matmul"]}
        row["share"] = row["flops"] / row["seconds"] / row["matmul"]
    return row


def check(race: Race, answers: Mapping[str, dict[str, Any]]) -> None:
    """Let no round pass whose sides came to different losses.

    Raises
    ------
    RuntimeError
        Naming the sides: their times cannot be compared.
    """
    losses = {name: answer["losses"] if race.same else answer["losses"][:1] for name, answer in answers.items()}
    (first, expected), *others = losses.items()
    for name, found in others:
        pairs = zip(expected, found, strict=True)
        if not all(math.isclose(one, other, rel_tol=TOLERANCE[race.size.bf16]) for one, other in pairs):
            raise RuntimeError(f"{race.name}: {first} and {name} do not get the same losses: {expected}, {found}")


def plan(preset: str, rounds: int) -> pd.DataFrame:
    """Seconds that Snakemake takes to plan every job of a preset.

    Raises
    ------
    UserError
        If it refuses the preset.
    """
    rows = []
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--quiet",
        "all",
        "--nolock",
        "--config",
        f"preset={preset}",
    ]
    for place in range(rounds + 1):
        start = time.perf_counter()
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"snakemake -n refuses the preset {preset}: {(done.stderr or done.stdout).strip()[-200:]}")
        rows.append({"round": place, "side": "planning", "seconds": time.perf_counter() - start})
        print(f"planning {place}/{rounds}: {rows[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, line: Line) -> dict[str, Any]:
    """One line: the median, least and greatest of the counted rounds' ratios, and the medians they are made of."""
    values = rows[rows["round"] > 0].pivot(index="round", columns="side", values=line.quantity)
    ratio = values[line.over] / (1 if line.under is None else values[line.under])
    middle = float(ratio.median())
    return {
        "measured": line.measured,
        "against": line.against,
        "ratio": middle,
        "low": float(ratio.min()),
        "high": float(ratio.max()),
        "goal": line.goal,
        "met": line.met(middle),
        "ours": float(values[line.over].median()),
        "theirs": math.nan if line.under is None else float(values[line.under].median()),
        "unit": {"speed": "tokens/s", "peak": "bytes", "seconds": "s", "share": ""}[line.quantity],
        "rounds": len(ratio),
    }


def cpu() -> str:
    """The processor's name and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def show(table: pd.DataFrame) -> Display:
    """The table as people read it."""
    cells = []
    for row in table.itertuples():
        vocabulary = getattr(row, "vocabulary", math.nan)
        scale = 1e9 if row.unit == "bytes" else 1
        unit = "GB" if row.unit == "bytes" else row.unit
        shown = [number(value / scale, 2 if value < 100 * scale else 0) for value in (row.ours, row.theirs)]
        cells.append(
            {
                "measured": row.measured,
                "against": row.against,
                "vocabulary": "" if math.isnan(vocabulary) else f"{vocabulary:,.0f}",
                "ratio": f"{number(row.ratio, 2)} ({number(row.low, 2)} to {number(row.high, 2)})",
                "goal": row.goal.replace(">=", "≥").replace("<=", "≤"),
                "met": "yes" if row.met else "no",
                "ours": f"{shown[0]} {unit}".strip(),
                "theirs": f"{shown[1]} {unit}".strip() if shown[1] else "",
            }
        )
    note = (
        f"{table.machine.iloc[0]}; {table.threads.iloc[0]} threads. Rounds in turns; ratio: median, least and greatest "
        f"of {table.rounds.min()} rounds. Sides that train or score the same had the same losses."
    )
    return Display("Speed and memory", pd.DataFrame(cells), note)


def _write(path: Path, table: pd.DataFrame) -> None:
    with whole(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
