"""Scoring by VLMEvalKit's own classes: a process of its own, in the environment that `envs/vlmevalkit.sh` makes.

Importing VLMEvalKit turns off gradients and the verification of SSL certificates, seeds the random numbers and
configures logging: nothing that trains or predicts may import it. No picture is read here; scoring needs none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml

from eval import tsv
from eval.results import BASELINE, ITEM_COLUMNS, METRIC_COLUMNS, PERCEPTION, REASONING
from prior.config import parse_tokens
from prior.errors import UserError
from prior.files import whole

# The name under which VLMEvalKit knows a benchmark. Its scoring goes by parts of the name, and a file with an official
# name would be compared with the official one and replaced by a download.
NAMES: dict[tsv.Kind, str] = {
    "mme": "MME_local",
    "pope": "POPE_local",
    "yes/no": "YesNo_local",
    "circular": "MMBench_local",
    "choice": "MCQ_local",
}
NO_PICTURE = ".no_picture"
_CHECKPOINT = re.compile(r"([^/]+)/([^/]+)/([^/]+)/seed(\d+)/(pretrain|tuned)/(?:final|step(\d+))")
_BASELINE = re.compile(rf"{BASELINE}/([^/]+)/seed(\d+)")

Rows = list[dict[str, Any]]


def kit() -> SimpleNamespace:
    """VLMEvalKit's classes and the two of its functions that are called by name. Imported on first use: 4-18 s."""
    from eval.torchvision_shim import import_torchvision

    # It prints, logs an error about a file of API keys that nobody needs here, and makes a data folder at once, in the
    # user's home unless told otherwise.
    logging.disable(logging.ERROR)
    os.environ.update(PRED_FORMAT="tsv", EVAL_FORMAT="csv", TQDM_DISABLE="1")
    try:
        with (
            tempfile.TemporaryDirectory() as data,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            os.environ.update(LMUData=data)
            import_torchvision()
            from vlmeval.dataset.image_mcq import ImageMCQDataset
            from vlmeval.dataset.image_yorn import ImageYORNDataset
            from vlmeval.dataset.utils import multiple_choice
            from vlmeval.smp import load
    except ModuleNotFoundError as error:
        raise UserError(
            f"the module {error.name} is missing from {Path(sys.prefix).name}; make the environment with "
            "`bash envs/vlmevalkit.sh .venv .venv-vlmevalkit` and run this there"
        ) from None
    return SimpleNamespace(yes_no=ImageYORNDataset, choice=ImageMCQDataset, mcq=multiple_choice, load=load)


@contextlib.contextmanager
def fresh_folder(modules: SimpleNamespace) -> Iterator[Path]:
    """A new folder for one scoring, with VLMEvalKit's data and temporary files in it.

    Its caches are keyed by names alone, so an edited prediction would keep its old score in a used folder. Circular
    scoring writes and reads back ``/tmp/<the time in seconds>.tsv``: two processes in one second would swap their rows.
    The name is led into this folder instead.
    """
    before = {key: os.environ.get(key) for key in ("LMUData", "TMPDIR")}
    clock = modules.mcq.timestr
    with tempfile.TemporaryDirectory(prefix="vlmevalkit-") as name:
        folder = Path(name).resolve()
        modules.mcq.timestr = lambda: os.path.relpath(folder / "circular", os.path.realpath("/tmp"))
        os.environ.update(LMUData=name, TMPDIR=name)
        tempfile.tempdir = None
        try:
            yield folder
        finally:
            modules.mcq.timestr = clock
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
            tempfile.tempdir = None


def _evaluate(
    modules: SimpleNamespace, kind: tsv.Kind, table: pd.DataFrame
) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Have VLMEvalKit score `table`: its score sheet, its verdicts, and what it read in each answer.

    The verdicts (bool) are those of its own result file, by index; of circular scoring it keeps one per question, under
    the question's index. What it read is an option's letter, Yes or No, or blank, for every row by index.
    """
    # One split, or the score sheet would have a line for each and none for the whole.
    table = table.drop(columns="split", errors="ignore")
    name, choice = NAMES[kind], kind in ("circular", "choice")
    with fresh_folder(modules) as folder:
        answers = folder / "work" / f"model_{name}.tsv"
        tsv.write_predictions(table, answers)
        table.drop(columns="prediction").to_csv(folder / f"{name}.tsv", sep="\t", index=False)
        dataset = (modules.choice if choice else modules.yes_no)(dataset=name)
        # No judge is asked: 'exact_matching' is its rule-based reading of answers.
        sheet = dataset.evaluate(str(answers), model="exact_matching", nproc=1)
        suffix = "exact_matching_result" if choice else "auxmatch"
        result = tsv.read_benchmark(answers.with_name(f"{answers.stem}_{suffix}.tsv")).set_index("index")
        if choice:
            verdicts = result["hit"] == "1"
            # Its result file does not say which letter it saw. This is the function with which it looks.
            as_read = modules.load(str(answers))
            letters = [modules.mcq.prefetch_answer(row) for _, row in as_read.iterrows()]
            parsed = pd.Series([str(letter or "") for letter in letters], index=as_read["index"].astype(str))
        else:
            verdicts, parsed = result["score"] == "True", result["extracted"]
    return sheet, verdicts, parsed.mask(parsed.isin(["Unknown", "Z"]), "")


def score(modules: SimpleNamespace, kind: tsv.Kind, table: pd.DataFrame) -> tuple[Rows, pd.DataFrame]:
    """Metrics and items of one benchmark's answers.

    Parameters
    ----------
    table
        The benchmark's rows as `tsv.read_benchmark` gives them, with a column ``prediction``.

    Returns
    -------
    Rows of ``metric, value, n_items, unit``, and a frame of ``item, group, category, correct, answer, prediction,
    parsed`` with a row for each of `table`. `n_items` counts rows, or groups of rows where these are scored as one. The
    metric ``chance`` is the share of rows that guessing among a row's options, or yes and no, gets right on average.
    """
    sheet, verdicts, parsed = _evaluate(modules, kind, table)
    items = pd.DataFrame(
        {
            "item": table["index"],
            "group": tsv.groups(table, kind),
            "category": table.get("category", ""),
            "correct": parsed.loc[table["index"]].to_numpy() == table["answer"].to_numpy(),
            "answer": table["answer"],
            "prediction": table["prediction"],
            "parsed": parsed.loc[table["index"]].to_numpy(),
        }
    ).reset_index(drop=True)
    ours = items.groupby("group" if kind == "circular" else "item")["correct"].all()
    if set(ours.index) != set(verdicts.index) or not (ours.loc[verdicts.index] == verdicts).all():
        raise RuntimeError("VLMEvalKit's verdicts and the answers that it read contradict each other")

    metrics: Rows = []

    def add(metric: str, value: float, n_items: int, unit: str = "percent") -> None:
        metrics.append({"metric": metric, "value": float(value), "n_items": int(n_items), "unit": unit})

    if kind == "mme":
        for metric, categories in (("perception", PERCEPTION), ("reasoning", REASONING)):
            if asked := int(items["category"].isin(categories).sum()):
                add(metric, sheet[metric].iloc[0], asked, "points")
        both = items.groupby(["category", "group"])["correct"].all()
        add("accuracy", 100 * items["correct"].mean(), len(items))
        add("accuracy_plus", 100 * both.mean(), len(both))
    elif kind == "pope":
        by_split = sheet.set_index("split").sort_index()
        columns = {"f1": "Overall", "accuracy": "acc", "precision": "precision", "recall": "recall"}
        for split in ["Overall", *by_split.index.drop("Overall")]:
            inside = items["category"].map(lambda names, split=split: split in names.split(","))
            suffix, n_items = ("", len(items)) if split == "Overall" else (f"_{split}", int(inside.sum()))
            for metric, column in columns.items():
                add(metric + suffix, by_split.loc[split, column], n_items)
    elif kind == "yes/no":
        add("accuracy", sheet["Overall"].iloc[0], len(items))
    else:
        # A fraction there, percent here. Circular: all rotations of a question must be right.
        add("accuracy", 100 * sheet["Overall"].iloc[0], len(verdicts))
        if kind == "circular":
            add("vanilla_accuracy", 100 * items["correct"].mean(), len(items))
    if kind in ("mme", "pope", "yes/no"):
        add("yes_rate", 100 * (items["parsed"] == "Yes").mean(), len(items))
    add("unparsed", 100 * (items["parsed"] == "").mean(), len(items))
    add("chance", 100 * float(np.mean([1 / (len(tsv.options(row)) or 2) for _, row in table.iterrows()])), len(items))
    return metrics, items


def parse_checkpoint(checkpoint: str, runs: Path | None) -> dict[str, Any]:
    """The keys ``arch, objective, scale_tokens, seed, stage, step`` of a checkpoint's name.

    ``final`` is the step that the run's own ``run.yaml`` names; for that `runs` is needed.
    """
    if match := _BASELINE.fullmatch(checkpoint):
        keys = {"arch": BASELINE, "objective": match[1], "scale_tokens": 0, "seed": int(match[2])}
        return keys | {"stage": "none", "step": 0}
    match = _CHECKPOINT.fullmatch(checkpoint)
    if not match:
        raise UserError(
            f"checkpoint '{checkpoint}': write it as hlvlm/ntp/40k/seed0/tuned/final, with step<n> for final, "
            "or as baseline/random/seed0"
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


def _due(predictions: Path, checkpoint: str, benchmarks: list[str]) -> list[tuple[str, bool]]:
    """(benchmark, with picture?) of every prediction file to score.

    A model must have answered every benchmark, with its pictures and, if any was asked so, without. A constant answer
    fits some benchmarks only.
    """
    folder = predictions / checkpoint
    have = {
        (name, picture) for name in benchmarks for picture in (True, False) if _file(folder, name, picture).is_file()
    }
    if checkpoint.startswith(f"{BASELINE}/"):
        wanted = {(name, True) for name, picture in have if picture}
    else:
        pictures = [True, False] if any(not picture for _, picture in have) else [True]
        wanted = {(name, picture) for name in benchmarks for picture in pictures}
    if missing := sorted(wanted - have, key=lambda entry: (entry[0], not entry[1])):
        raise UserError(f"{_file(folder, *missing[0])}: there is no such file; predict with this checkpoint first")
    if not wanted:
        raise UserError(f"{folder}: no predictions for {', '.join(benchmarks)}; predict first")
    return sorted(wanted, key=lambda entry: (entry[0], not entry[1]))


def _file(folder: Path, name: str, picture: bool) -> Path:
    return folder / f"{name}{'' if picture else NO_PICTURE}.tsv"


def _with_predictions(path: Path, benchmark: pd.DataFrame) -> pd.DataFrame:
    """The benchmark's rows with the predictions of `path`, which must be answers to just these questions."""
    answers = tsv.read_benchmark(path)
    for column in ("index", "prediction"):
        if column not in answers:
            raise UserError(f"{path}: lacks the column '{column}'; predict again")
    if sorted(answers["index"]) != sorted(benchmark["index"]):
        raise UserError(
            f"{path}: its {len(answers)} rows are not the {len(benchmark)} of the benchmark, once each; predict again"
        )
    answers = answers.set_index("index").loc[benchmark["index"]].reset_index()
    for column in benchmark.columns.intersection(answers.columns):
        for index, asked, is_now in zip(answers["index"], answers[column], benchmark[column], strict=True):
            if asked != is_now:
                raise UserError(f"{path}: index {index}: '{column}' is not the benchmark's any more; predict again")
    return benchmark.assign(prediction=answers["prediction"].to_numpy())


def score_checkpoints(
    benchmarks: Path, predictions: Path, checkpoints: list[str], runs: Path | None, names: list[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of all checkpoints, in the columns of ``metrics.csv`` and ``items.parquet``."""
    names = sorted(names or (path.stem for path in benchmarks.glob("*.tsv")))
    if not names:
        raise UserError(f"{benchmarks}: no benchmark (*.tsv) in this folder; make one first")
    # Everything that the user may have to mend comes before the import.
    frames = {name: tsv.validate(benchmarks / f"{name}.tsv", pictures=False) for name in names}
    work = []
    for checkpoint in checkpoints:
        run = parse_checkpoint(checkpoint, runs)
        for name, picture in _due(predictions, checkpoint, names):
            path = _file(predictions / checkpoint, name, picture)
            with_picture = picture and run["arch"] != BASELINE
            keys = run | {"picture": "with" if with_picture else "without", "benchmark": name}
            work.append((path, keys, _with_predictions(path, frames[name])))
    modules = kit()
    metrics: Rows = []
    items: list[pd.DataFrame] = []
    for path, keys, table in work:
        try:
            rows, answered = score(modules, tsv.kind_of(keys["benchmark"], list(table.columns)), table)
        except Exception as error:
            raise RuntimeError(f"{path}: VLMEvalKit failed on it") from error
        metrics += [keys | row for row in rows]
        items.append(answered.assign(**keys))
    return pd.DataFrame(metrics)[METRIC_COLUMNS], pd.concat(items, ignore_index=True)[ITEM_COLUMNS]


def prompts(path: Path) -> list[dict[str, str]]:
    """``index`` and ``text`` of every row: what VLMEvalKit's own `build_prompt` asks, its pictures left out."""
    frame = tsv.validate(path, pictures=False)
    kind = tsv.kind_of(path.stem, list(frame.columns))
    modules = kit()
    with fresh_folder(modules) as folder:
        # Without the column `image` it passes paths on as they are and opens nothing.
        frame.assign(image_path="none").to_csv(folder / f"{NAMES[kind]}.tsv", sep="\t", index=False)
        dataset = (modules.choice if kind in ("circular", "choice") else modules.yes_no)(dataset=NAMES[kind])
        return [
            {"index": str(dataset.data.iloc[row]["index"]), "text": part["value"]}
            for row in range(len(dataset))
            for part in dataset.build_prompt(row)
            if part["type"] == "text"
        ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.vlmevalkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="score predictions into metrics and items")
    scoring.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmark TSVs")
    scoring.add_argument("--benchmark", action="append", dest="names", help="only this one of them; repeat for more")
    scoring.add_argument("--predictions", type=Path, required=True, help="folder of <checkpoint>/<benchmark>.tsv")
    scoring.add_argument(
        "--checkpoint", action="append", required=True, help="hlvlm/ntp/40k/seed0/tuned/final; repeat for more"
    )
    scoring.add_argument("--runs", type=Path, help="folder of <run>/<stage>/run.yaml, which names the final step")
    scoring.add_argument("--metrics", type=Path, required=True, help="CSV file to write")
    scoring.add_argument("--items", type=Path, required=True, help="Parquet file to write")
    asking = commands.add_parser("prompts", help="the text that VLMEvalKit asks, as JSON lines")
    asking.add_argument("--benchmark", type=Path, required=True, help="a benchmark TSV")
    asking.add_argument("--out", type=Path, help="file to write; standard output if not given")
    given = parser.parse_args(arguments)
    try:
        if given.command == "prompts":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts(given.benchmark))
            if given.out is None:
                sys.stdout.write(text)
            else:
                with whole(given.out) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            return 0
        metrics, items = score_checkpoints(
            given.benchmarks, given.predictions, given.checkpoint, given.runs, given.names
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
