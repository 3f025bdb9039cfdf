"""The command line of the measuring: one command per stage, each reading files and writing files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from prior.config import FolderCorpus, ScenesCorpus, digest, shard_names
from prior.console import Folder, PresetName, Runs, RunsFolder, State, begin_long_work, checked_preset
from prior.errors import UserError
from prior.files import whole, write_text

Table = Annotated[Path, typer.Option()]

# The C library writes hundreds of runs in a tenth of the time.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

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
    from eval.gather.words import describe, token_scores, word_scores
    from prior.backbones import load_tokenizer
    from prior.corpus.store import read_corpus
    from prior.documents import Ragged
    from prior.tokens import read_ragged, read_table, shard_files

    corpus = checked_preset(preset).corpus
    names = shard_names(corpus, "train")
    records = read_corpus(train, names)
    described = describe(records.select(range(min(captions, len(records)))), load_tokenizer(tokenizer), corpus)
    logprob = Ragged.join(read_ragged(read_table(path)["logprob"]) for path in shard_files(scores, names))
    for path, gather in ((out, word_scores), (tokens, token_scores)):
        with whole(path) as temporary:
            gather(described, logprob).to_parquet(temporary, index=False, compression="zstd")


@app.command()
def mutual(preset: PresetName, results: Folder, scores: Table, val: Table, tokenizer: Table, out: Table) -> None:
    """Gather what held-out tokens learn from their pictures in every run, against what PRIOR weighs them by."""
    from eval.gather.mutual import mutual as gather
    from prior.backbones import load_tokenizer
    from prior.corpus.store import read_corpus

    table = gather(results, checked_preset(preset), scores, read_corpus(val), load_tokenizer(tokenizer))
    with whole(out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


@app.command()
def training(preset: PresetName, results: Folder, out: Table) -> None:
    """Gather the steps of every pre-training, in bins."""
    from eval.gather.training import training as gather

    table = gather(checked_preset(preset), results / "runs")
    with whole(out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


@app.command()
def provenance(preset: PresetName, results: Folder, out: Table) -> None:
    """Write the ``run.yaml`` of every run and stage into one file."""
    from eval.report.origin import gather

    write_text(out, yaml.dump(gather(results, checked_preset(preset)), Dumper=_Dumper, sort_keys=False))


@app.command()
def outcomes(
    preset: PresetName,
    stored: Annotated[Path, typer.Option(help="Folder of the small files that results are made from.")],
    fits: Table,
    paper: Table,
    tables: Folder,
    figures: Folder,
    only: Annotated[list[str] | None, typer.Option(help="A result, such as losses; may be repeated.")] = None,
) -> None:
    """Make every result: its table as CSV, Markdown, LaTeX and HTML, its figure as PDF and PNG."""
    from eval.outcomes import OUTCOMES, write_outcomes
    from eval.study import read_study

    if unknown := [name for name in only or [] if name not in OUTCOMES]:
        raise UserError(f"--only {unknown[0]}: there is no such result; choose from {', '.join(OUTCOMES)}")
    study = read_study(stored, checked_preset(preset), paper, fits)
    write_outcomes(study, tables, figures, only or OUTCOMES)


@app.command()
def claims(
    preset: PresetName,
    stored: Annotated[Path, typer.Option(help="Folder of the small files that results are made from.")],
    fits: Table,
    paper: Table,
    out: Annotated[Path, typer.Option(help="Folder of claims.csv, claims.md and claims.html.")],
) -> None:
    """Test what the paper claims."""
    from eval.claims import write_claims
    from eval.study import read_study

    write_claims(read_study(stored, checked_preset(preset), paper, fits), out)


@app.command()
def report(
    preset: PresetName,
    stored: Annotated[Path, typer.Option(help="Folder of metrics.csv, items.parquet and what lies beside them.")],
    results: Annotated[Path, typer.Option(help="Folder of tables, figures and claims.csv.")],
    paper: Table,
    out: Table,
) -> None:
    """Write the page that shows what was run, what came of it, and where each number comes from."""
    from eval.report import write_report
    from eval.study import read_study

    settings = checked_preset(preset)
    viewer = (results / "viewer.html").is_file()
    write_report(read_study(stored, settings, paper), settings, results, out, viewer=viewer)


@app.command()
def viewer(preset: PresetName, results: Folder, out: Table) -> None:
    """Write the token viewer: held-out captions under PRIOR's weights, and what was answered about their pictures."""
    from eval.viewer.gather import gather
    from eval.viewer.page import write_page

    write_page(gather(checked_preset(preset), results), out)
