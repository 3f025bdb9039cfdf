"""Scoring by VLMEvalKit's own classes. No picture is read here; scoring needs none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from eval import tsv
from eval.checkpoints import is_final, parse_checkpoint, prediction_file
from eval.degenerate import degenerate
from eval.results import BASELINE, ITEM_COLUMNS, METRIC_COLUMNS, PERCEPTION, REASONING
from eval.vlmevalkit.kit import NAMES, dataset, fresh_folder, kit
from prior.errors import UserError

Rows = list[dict[str, Any]]


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
        asked = dataset(modules, kind, table.drop(columns="prediction"), folder)
        # No judge is asked: 'exact_matching' is its rule-based reading of answers.
        sheet = asked.evaluate(str(answers), model="exact_matching", nproc=1)
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
    parsed`` with a row for each of `table`, or for each split that a row of POPE is in. `n_items` counts rows, or
    groups of rows where these are scored as one. The metric ``chance`` is the share of questions that guessing among
    their options, or yes and no, gets right on average.
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
    if kind == "pope":
        # A question of several splits counts once in each, in VLMEvalKit's overall scores, too.
        items = items.assign(category=items["category"].str.split(",")).explode("category", ignore_index=True)
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
            suffix = "" if split == "Overall" else f"_{split}"
            n_items = len(items) if split == "Overall" else int((items["category"] == split).sum())
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
    # A question with four options has four rotations, one with two has two: each question counts once.
    guess = pd.Series([_guess(row, kind) for row in table.to_dict("records")])
    question = (tsv.groups(table, kind) if kind == "circular" else table["index"]).to_numpy()
    add("chance", 100 * guess.groupby(question).mean().mean(), len(verdicts))
    return metrics, items


def _guess(row: dict[str, str], kind: tsv.Kind) -> float:
    """How likely a guess among what a model is shown is right; an option that VLMEvalKit does not read cannot be."""
    if kind not in ("circular", "choice"):
        return 0.5
    options = tsv.options(row)
    return 1 / len(options) if row["answer"] in options else 0.0


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
    path: Path,
    predictions: Path,
    checkpoints: Sequence[str],
    runs: Path | None,
    no_picture: bool = False,
    degenerate_seeds: int = 0,
    official: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of all checkpoints on one benchmark, in the columns of ``metrics.csv`` and ``items.parquet``.

    Parameters
    ----------
    path
        The benchmark's TSV, named by the benchmark.
    predictions
        Folder of ``<checkpoint>/<benchmark>.tsv``.
    no_picture
        Also score what each final checkpoint answered without the pictures.
    degenerate_seeds
        Also score what needs no model, random answers with so many seeds; 0 leaves them out.
    official
        As for `tsv.validate`.
    """
    # Everything that the user may have to mend comes before the import.
    frame = tsv.validate(path, pictures=False, official=official)
    kind = tsv.kind_of(path.stem, list(frame.columns))
    if kind == "caption":
        raise UserError(f"{path}: captions are scored by `python -m eval captions`, not by VLMEvalKit")
    work: list[tuple[str, dict[str, Any], pd.DataFrame]] = []
    for checkpoint in checkpoints:
        run = parse_checkpoint(checkpoint, runs)
        for picture in (True, False) if no_picture and is_final(checkpoint) else (True,):
            answers = prediction_file(predictions, checkpoint, path.stem, picture)
            keys = run | {"picture": "with" if picture else "without"}
            work.append((str(answers), keys, _with_predictions(answers, frame)))
    for habit, seed, answered in degenerate(frame, degenerate_seeds):
        keys = {"arch": BASELINE, "objective": habit, "scale_tokens": 0, "seed": seed, "stage": "none", "step": 0}
        work.append((f"{path}: {habit}", keys | {"picture": "without"}, frame.assign(prediction=answered)))
    if not work:
        raise UserError(f"{path}: nothing to score; name a checkpoint")
    modules = kit()
    metrics: Rows = []
    items: list[pd.DataFrame] = []
    for where, keys, table in work:
        keys["benchmark"] = path.stem
        try:
            rows, answered_items = score(modules, kind, table)
        except Exception as error:
            raise RuntimeError(f"{where}: VLMEvalKit failed on it") from error
        metrics += [keys | row for row in rows]
        items.append(answered_items.assign(**keys))
    return pd.DataFrame(metrics)[METRIC_COLUMNS], pd.concat(items, ignore_index=True)[ITEM_COLUMNS]
