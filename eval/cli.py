"""The command line of the measuring: one command per stage, each reading files and writing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import yaml

from prior.cli import Folder, PresetName, Runs, RunsFolder, _load, _threads, _tokenizer
from prior.config import ScenesCorpus, parse_run
from prior.errors import UserError
from prior.files import whole, write_text

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

DEGENERATE = ("random", "always_yes", "always_no", "always_A")


@app.command()
def benchmark(name: str, preset: PresetName, out: Folder, val: Annotated[Path | None, typer.Option()] = None) -> None:
    """Write one benchmark as a TSV file in VLMEvalKit's format."""
    from eval.benchmarks import GENERATORS, check_benchmarks, write_tsv

    settings = _load(preset)
    check_benchmarks(settings)
    entry = settings.benchmarks.get(name)
    if entry is None:
        raise UserError(f"benchmarks: preset '{settings.name}' has no entry '{name}'; add it there")
    if name == "CaptionChoice":
        from eval.benchmarks.caption_choice import rows
        from prior.corpus.store import read_corpus

        if val is None:
            raise UserError("CaptionChoice is made from held-out captions; name their folder with --val")
        made = rows(read_corpus(val), entry.items, entry.seed)
    else:
        if name not in GENERATORS or not isinstance(settings.corpus, ScenesCorpus):
            raise UserError(f"benchmarks.{name}: it is not made here; one of {', '.join(GENERATORS)} is")
        made = GENERATORS[name](entry.items, entry.seed, settings.corpus.seed, settings.corpus.image_size)
    write_tsv(made, out)


@app.command()
def check(preset: PresetName, benchmarks: Folder) -> None:
    """Check every benchmark of a preset, before anything is trained to answer it."""
    from eval.tsv import validate

    for name, entry in _load(preset).benchmarks.items():
        path = benchmarks / f"{name}.tsv"
        frame = validate(path)
        if entry.answer == "likelihood" and "A" not in frame:
            raise UserError(f"{path}: `answer: likelihood` ranks options, but there are none; use `answer: generate`")


@app.command()
def predict(preset: PresetName, run: Runs, runs: RunsFolder, benchmarks: Folder, out: Folder) -> None:
    """Let the final checkpoints of some runs answer every benchmark, with and without its pictures."""
    from tqdm import tqdm

    from eval import predict as prediction
    from eval.tsv import read_benchmark, write_predictions
    from prior import models

    settings = _load(preset)
    evaluation = settings.evaluation
    frames = {name: read_benchmark(benchmarks / f"{name}.tsv") for name in settings.benchmarks}
    _threads(evaluation.threads)
    rounds = (True, False) if evaluation.no_picture else (True,)
    with tqdm(total=len(run) * len(rounds) * sum(map(len, frames.values())), unit="answer") as bar:
        for checkpoint in (f"{name}/{settings.final_stage}/final" for name in run):
            architecture = models.load(parse_run(checkpoint.rsplit("/", 2)[0]).arch, runs / checkpoint)
            words = _tokenizer(runs / checkpoint)
            for name, frame in frames.items():
                for with_picture in rounds:
                    bar.set_description(name)
                    answered = prediction.predict(
                        architecture,
                        words,
                        frame,
                        settings.benchmarks[name].answer,
                        with_picture,
                        evaluation.batch_size,
                        evaluation.max_new_tokens,
                        bar.update,
                    )
                    ending = "" if with_picture else ".no_picture"
                    write_predictions(answered, out / checkpoint / f"{name}{ending}.tsv")


@app.command()
def degenerate(preset: PresetName, benchmarks: Folder, out: Folder) -> None:
    """Write what answering without a model looks like: random answers, always yes, always no, always A."""
    from eval import predict as prediction
    from eval.tsv import read_benchmark, write_predictions

    settings = _load(preset)
    with whole(out) as folder:
        for name in settings.benchmarks:
            frame = read_benchmark(benchmarks / f"{name}.tsv")
            for kind in DEGENERATE:
                for seed in range(settings.seeds if kind == "random" else 1):
                    answered = prediction.degenerate(frame, kind, seed)
                    if answered is not None:
                        write_predictions(answered, folder / kind / f"seed{seed}" / f"{name}.tsv")


@app.command()
def collect(preset: PresetName, results: Folder, metrics: Folder, items: Folder) -> None:
    """Gather every measured number into metrics.csv and items.parquet."""
    from eval.collect import collect as gather

    table, answers = gather(results, _load(preset))
    with whole(metrics) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with whole(items) as temporary:
        answers.to_parquet(temporary, index=False)


Table = Annotated[Path, typer.Option()]


@app.command()
def fit(preset: PresetName, metrics: Table, out: Table) -> None:
    """Fit power laws of loss and benchmark error against caption tokens."""
    from eval.results import read_metrics
    from eval.scaling import write_fits

    write_fits(read_metrics(metrics), _load(preset).statistics, out)


@app.command()
def words(scores: Table, train: Table, tokenizer: Table, out: Table, tokens: Table) -> None:
    """Gather the scored tokens of the training captions, and the words that they make up."""
    from eval.words import token_scores, word_scores
    from prior.corpus.store import read_corpus

    records, speller = read_corpus(train), _tokenizer(tokenizer)
    for path, gather in ((out, word_scores), (tokens, token_scores)):
        with whole(path) as temporary:
            gather(records, speller, scores).to_parquet(temporary, index=False)


@app.command()
def tables(
    preset: PresetName,
    metrics: Table,
    items: Table,
    fits: Table,
    words: Table,
    paper: Table,
    out: Table,
    quality: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Write every table as CSV and Markdown."""
    from eval.results import read_items, read_metrics, read_paper
    from eval.tables import write_tables

    laws = json.loads(fits.read_text(encoding="utf-8"))
    settings = _load(preset).statistics
    write_tables(
        read_metrics(metrics),
        read_items(items),
        laws,
        settings,
        read_paper(paper),
        out,
        pd.read_parquet(words),
        json.loads(quality.read_text(encoding="utf-8")) if quality else None,
    )


@app.command()
def figures(
    preset: PresetName, metrics: Table, items: Table, fits: Table, tokens: Table, paper: Table, out: Table
) -> None:
    """Draw every figure as PDF and PNG."""
    from eval.figures import write_figures
    from eval.results import read_items, read_metrics, read_paper

    laws = json.loads(fits.read_text(encoding="utf-8"))
    settings = _load(preset).statistics
    write_figures(
        read_metrics(metrics), read_items(items), laws, settings, read_paper(paper), out, pd.read_parquet(tokens)
    )


@app.command()
def report(preset: PresetName, results: Table, paper: Table, out: Table, provenance: Table) -> None:
    """Write the page that shows what was run and what came of it, and every ``run.yaml`` in one file."""
    from eval.report import About, write_report
    from eval.results import read_items, read_metrics, read_paper

    settings = _load(preset)
    names = [f"runs/{run}/{stage}" for run in settings.runs() for stage in settings.stages]
    runs = {name: yaml.safe_load((results / name / "run.yaml").read_text(encoding="utf-8")) for name in names}
    write_text(provenance, yaml.safe_dump(runs, sort_keys=False))
    first, *_ = runs.values()
    about = About(
        preset=settings.name,
        settings=settings.model_dump(mode="json"),
        versions=first["versions"],
        commits=tuple(dict.fromkeys(run["commit"] for run in runs.values())),
        provenance=tuple(f"{name}/run.yaml" for name in names),
    )
    write_report(
        read_metrics(results / "metrics.csv"),
        read_items(results / "items.parquet"),
        json.loads((results / "fits.json").read_text(encoding="utf-8")),
        settings.statistics,
        read_paper(paper),
        results / "figures",
        out,
        about,
        pd.read_parquet(results / "words.parquet"),
        json.loads((results / "reference/base/quality.json").read_text(encoding="utf-8")),
    )
