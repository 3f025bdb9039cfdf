"""The command line of the measuring: one command per stage, each reading files and writing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import yaml

from prior.config import FolderCorpus, ScenesCorpus, digest, shard_names
from prior.console import Folder, PresetName, Runs, RunsFolder, State, begin_long_work, checked_preset
from prior.errors import UserError
from prior.files import whole, write_text

Table = Annotated[Path, typer.Option()]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def benchmark(
    name: str,
    preset: PresetName,
    out: Folder,
    val: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Make a benchmark by its module in `eval.benchmarks`, as a TSV file in VLMEvalKit's format."""
    from eval.benchmarks import check_benchmarks, make, write_tsv
    from prior.corpus.store import read_corpus

    settings = checked_preset(preset)
    check_benchmarks(settings)
    if name not in settings.benchmarks:
        raise UserError(f"benchmarks: preset '{settings.name}' has no entry '{name}'; add it there")
    write_tsv(make(name, settings, read_corpus(val) if val else None), out)


@app.command()
def chair(
    preset: PresetName, out: Folder, synonyms: Folder, val: Annotated[Path | None, typer.Option()] = None
) -> None:
    """Make CHAIR: pictures to describe with the objects that are there, and the table of the objects' names."""
    from eval.benchmarks import chair, check_benchmarks, write_tsv
    from prior.corpus.store import read_corpus

    settings = checked_preset(preset)
    check_benchmarks(settings)
    if "CHAIR" not in settings.benchmarks:
        raise UserError(f"benchmarks: preset '{settings.name}' has no entry 'CHAIR'; add it there")
    entry, corpus = settings.benchmarks["CHAIR"], settings.corpus
    if isinstance(corpus, FolderCorpus):
        if val is None:
            raise UserError("CHAIR is about held-out pictures; name their folder with --val")
        assert entry.objects and entry.synonyms
        names = Path(corpus.folder, entry.synonyms)
        objects = Path(corpus.folder, entry.objects)
        rows = chair.folder_rows(read_corpus(val), entry.items, entry.seed, objects, names)
        table = chair.synonyms(names)
    else:
        assert isinstance(corpus, ScenesCorpus)
        rows, table = chair.rows(entry.items, entry.seed, corpus.seed, corpus.image_size), chair.synonyms()
    with whole(synonyms) as temporary:
        temporary.write_text(table, encoding="utf-8")
        write_tsv(rows, out)


@app.command()
def official(name: str, preset: PresetName, table: Folder, out: Folder) -> None:
    """Fetch a benchmark that VLMEvalKit names: from its address, or from the preset's `benchmarks_dir`."""
    from eval.official import fetch

    folder = checked_preset(preset).benchmarks_dir
    fetch(name, table, out, Path(folder) if folder else None)


@app.command()
def predict(
    preset: PresetName,
    run: Runs,
    runs: RunsFolder,
    benchmark: Annotated[list[str], typer.Option(help="A benchmark of the preset; may be given several times.")],
    benchmarks: Folder,
    out: Folder,
    state: State,
    step: Annotated[
        int | None, typer.Option(help="A checkpoint kept in pre-training, in place of the last ones.")
    ] = None,
) -> None:
    """Let the checkpoints of some runs answer benchmarks, the last ones with and without their pictures.

    Answers are written into `state` as they are given: a job that was interrupted goes on from there.
    """
    from tqdm import tqdm

    from eval.answers import Answers
    from eval.checkpoints import prediction_file
    from eval.predict import Questions, load_model
    from eval.predict import predict as ask
    from eval.tsv import write_predictions
    from prior.files import fingerprint

    settings = checked_preset(preset)
    evaluation = settings.evaluation
    asked: dict[str, Questions] = {}
    keys: dict[str, str] = {}
    for name in benchmark:
        if name not in settings.benchmarks:
            raise UserError(f"benchmarks: preset '{settings.name}' has no entry '{name}'; add it there")
        files = benchmarks / f"{name}.tsv", benchmarks / f"{name}.jsonl"
        asked[name] = Questions.read(*files, settings.benchmarks[name].answer)
        keys[name] = " ".join(
            [digest(evaluation.asking()), digest(settings.benchmarks[name]), *map(fingerprint, files)]
        )
    begin_long_work(evaluation.threads)
    journals: list[Answers] = []
    pictures = evaluation.pictures if step is None else (True,)
    total = len(pictures) * sum(map(len, asked.values()))
    with tqdm(total=len(run) * total, unit="answer") as bar:
        for stage, name_of_run in [(stage, name) for name in run for stage in settings.stages]:
            due = [name for name in benchmark if settings.asked_stage(name) == stage]
            if not due:
                continue
            checkpoint = f"{name_of_run}/{stage}/" + ("final" if step is None else f"step{step}")
            model = load_model(runs / checkpoint)
            for name in due:
                bar.set_description(name)
                for picture in pictures:
                    path = prediction_file(out, checkpoint, name, picture)
                    private = (state / path.relative_to(out)).with_suffix(".jsonl")
                    journals.append(Answers(private, f"{model.fingerprint} {keys[name]}"))
                    answered = ask(model, asked[name], picture, evaluation, journals[-1], bar.update)
                    write_predictions(answered, path)
    # Only now: Snakemake deletes what an interrupted job has written.
    for answers in journals:
        answers.remove()


@app.command()
def captions(
    benchmark: Table,
    synonyms: Table,
    predictions: Table,
    checkpoint: Annotated[list[str], typer.Option(help="As hlvlm/ntp/40k/seed0/pretrain/final.")],
    runs: RunsFolder,
    metrics: Table,
    items: Table,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Score those without pictures, too.")] = False,
) -> None:
    """Score the captions of all checkpoints by the objects that they mention (CHAIR)."""
    from eval.chair import score_captions

    table, answers = score_captions(benchmark, synonyms, predictions, checkpoint, runs, no_picture)
    with whole(metrics) as temporary, whole(items) as beside:
        table.to_csv(temporary, index=False)
        answers.to_parquet(beside, index=False)


@app.command()
def sources(preset: PresetName, benchmarks: Folder, out: Table) -> None:
    """Write which file each benchmark is: generated, official, or another one under an official name."""
    from eval.sources import sources as describe

    with whole(out) as temporary:
        describe(checked_preset(preset), benchmarks).to_csv(temporary, index=False)


@app.command()
def collect(
    preset: PresetName,
    results: Folder,
    metrics: Folder,
    items: Folder,
    measure: Annotated[list[str] | None, typer.Option(help="measures/<this>.csv and .parquet of the results.")] = None,
) -> None:
    """Gather every measured number into metrics.csv and items.parquet."""
    from eval.collect import collect as gather

    table, answers = gather(results, checked_preset(preset), measure or [])
    with whole(metrics) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with whole(items) as temporary:
        answers.to_parquet(temporary, index=False)


@app.command()
def fit(preset: PresetName, metrics: Table, out: Table) -> None:
    """Fit power laws of loss and benchmark error against caption tokens."""
    from eval.results import read_metrics
    from eval.scaling import write_fits

    write_fits(read_metrics(metrics), checked_preset(preset).statistics, out)


@app.command()
def words(
    preset: PresetName,
    scores: Table,
    train: Table,
    tokenizer: Table,
    out: Table,
    tokens: Table,
    captions: Annotated[int, typer.Option(help="How many captions, the first of the corpus.")],
) -> None:
    """Gather the scored tokens of training captions, and the words that they make up."""
    from eval.words import token_scores, word_scores
    from prior.backbones import load_tokenizer
    from prior.corpus.store import read_corpus
    from prior.documents import Ragged
    from prior.tokens import read_ragged, read_table, shard_files

    names = shard_names(checked_preset(preset).corpus, "train")
    records, speller = read_corpus(train, names), load_tokenizer(tokenizer)
    records = records.select(range(min(captions, len(records))))
    logprob = Ragged.join(read_ragged(read_table(path)["logprob"]) for path in shard_files(scores, names))
    for path, gather in ((out, word_scores), (tokens, token_scores)):
        with whole(path) as temporary:
            gather(records, speller, logprob).to_parquet(temporary, index=False)


@app.command()
def tables(
    preset: PresetName,
    metrics: Table,
    items: Table,
    fits: Table,
    words: Table,
    paper: Table,
    out: Table,
    asked: Table,
    quality: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Write every table as CSV and Markdown."""
    from eval.results import read_items, read_metrics, read_paper
    from eval.tables import write_tables

    laws = json.loads(fits.read_text(encoding="utf-8"))
    settings = checked_preset(preset).statistics
    write_tables(
        read_metrics(metrics),
        read_items(items),
        laws,
        settings,
        read_paper(paper),
        out,
        pd.read_parquet(words),
        json.loads(quality.read_text(encoding="utf-8")) if quality else None,
        pd.read_csv(asked),
    )


@app.command()
def figures(
    preset: PresetName, metrics: Table, items: Table, fits: Table, tokens: Table, paper: Table, out: Table
) -> None:
    """Draw every figure as PDF and PNG."""
    from eval.figures import write_figures
    from eval.results import read_items, read_metrics, read_paper

    laws = json.loads(fits.read_text(encoding="utf-8"))
    settings = checked_preset(preset).statistics
    write_figures(
        read_metrics(metrics), read_items(items), laws, settings, read_paper(paper), out, pd.read_parquet(tokens)
    )


@app.command()
def report(preset: PresetName, results: Table, paper: Table, out: Table, provenance: Table) -> None:
    """Write the page that shows what was run and what came of it, and every ``run.yaml`` in one file."""
    from eval.report import About, write_report
    from eval.results import read_items, read_metrics, read_paper

    settings = checked_preset(preset)
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
        pd.read_csv(results / "benchmarks.csv"),
    )
