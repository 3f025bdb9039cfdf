"""The command line of the method: one command per stage, each reading files and writing files."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prior import processes, slurm, stopping
from prior.config import Preset, ScenesCorpus, parse_run, parse_tokens
from prior.errors import CorpusTooSmall, UserError
from prior.files import NO_ROOM
from prior.presets import load_preset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prior.packing import Documents

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
backbone = typer.Typer(no_args_is_help=True, help="Tokenizer, base LLM and vision tower: fetched or trained here.")
app.add_typer(backbone, name="backbone")

PresetName = Annotated[str, typer.Option("--preset", help="Name in workflow/presets, or the path of a YAML file.")]
Folder = Annotated[Path, typer.Option()]
Runs = Annotated[list[str], typer.Option("--run", help="arch/objective/scale/seedK; may be given several times.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
State = Annotated[Path, typer.Option("--state", help="Private folder for checkpoints to resume from.")]


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    run(app)


def run(application: typer.Typer) -> None:
    try:
        application()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or Path.cwd()
        print(f"error: {where}: there is no room left on its disk; make room and start again", file=sys.stderr)
        sys.exit(2)
    except stopping.Stopped as stopped:
        if processes.first():
            job = slurm.own_job()
            again = f"job {job} starts again by itself" if job and slurm.requeue(job) else "start again to go on"
            print(f"{stopped}; {again}", file=sys.stderr)
        elif slurm.own_job():
            # A process that ends ends the others, and the first one has still to ask for the new start.
            time.sleep(3 * slurm.PATIENCE)
        sys.exit(stopping.EXIT_CODE)


@app.command()
def corpus(preset: PresetName, split: Annotated[str, typer.Option()], out: Folder) -> None:
    """Write one split of the corpus: train, val or text_only."""
    from prior.corpus import store

    settings = _load(preset)
    if isinstance(settings.corpus, ScenesCorpus):
        from prior.corpus import scenes

        world = settings.corpus
        if split == "text_only":
            store.write_texts(_progress(scenes.texts(0, world.text_only, world.seed), world.text_only, split), out)
        else:
            count = getattr(world, split)
            records = scenes.pairs(split, 0, count, world.seed, world.image_size)
            store.write_corpus(_progress(records, count, split), out)
        return
    from prior.corpus.readers import read_folder

    splits = read_folder(settings.corpus)
    if split == "text_only":
        store.write_texts(splits.text_only, out)
    else:
        store.write_corpus(getattr(splits, split), out)


@app.command()
def questions(preset: PresetName, out: Folder) -> None:
    """Write questions and answers about training pictures of the generated world, as JSON lines."""
    from prior.corpus.questions import tuning_questions
    from prior.files import whole

    settings = _load(preset)
    if settings.tune is None or not isinstance(settings.corpus, ScenesCorpus):
        raise UserError("tune: questions are made for `corpus.kind: scenes` only; set `tune: null` for other corpora")
    world = settings.corpus
    asked = tuning_questions(settings.tune.questions, settings.tune.seed, world.train, world.seed)
    with whole(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for item in _progress(asked, settings.tune.questions, "questions"):
            stream.write(json.dumps(item) + "\n")


@backbone.command()
def tokenizer(preset: PresetName, train: Folder, text_only: Folder, out: Folder) -> None:
    """Train a tokenizer on the captions and the text-only split, or fetch one; refuse scales beyond the corpus."""
    from prior.backbones import hub_tokenizer, train_tokenizer
    from prior.corpus.store import read_corpus
    from prior.files import whole
    from prior.packing import nested_subset

    settings = _load(preset)
    if isinstance(settings.tokenizer, str):
        result = hub_tokenizer(settings.tokenizer)
    else:
        texts = [*read_corpus(train)["caption"], *read_corpus(text_only)["text"]]
        result = train_tokenizer(texts, settings.tokenizer.scratch)
    # The first moment at which the corpus's size is known, and nothing has been trained yet.
    largest = settings.scales[-1]
    try:
        nested_subset(_captions(train, result, image=False).targets.lengths, parse_tokens(largest), seed=0)
    except CorpusTooSmall as error:
        raise UserError(f"scales: {largest}: {error}; add captions or lower the scale") from None
    with whole(out) as folder:
        result.save_pretrained(folder)


@backbone.command()
def llm(preset: PresetName, text_only: Folder, tokenizer: Folder, out: Folder, state: State) -> None:
    """Pre-train a small base LLM on the text-only split, or fetch one."""
    import numpy as np

    from prior.backbones import hub_llm, new_llm
    from prior.files import whole

    settings = _load(preset).backbones.llm
    words = _tokenizer(tokenizer)
    if isinstance(settings, str):
        # New embeddings are drawn from the old ones' covariance, whose last bits depend on the number of threads.
        _threads(1)
        if not processes.first():
            return
        with whole(out) as folder:
            hub_llm(settings, words).save_pretrained(folder)
        return
    from prior.corpus.store import read_corpus
    from prior.models.attention import unpack
    from prior.packing import Packer, repeat_order, tokenize_texts
    from prior.state import private
    from prior.training import LOG, train

    recipe = settings.scratch
    _training(recipe.training.threads)
    made_from: dict[str, Any] = {"settings": recipe, "inputs": _fingerprints(text_only, words)}
    with private(state, **made_from), processes.first_only(lambda: whole(out)) as folder:
        records = read_corpus(text_only)
        documents = tokenize_texts(records["id"], records["text"], words)
        model = new_llm(recipe, words)
        first = np.random.default_rng([recipe.seed, 31]).permutation(len(documents))
        order = repeat_order(first, recipe.training.epochs, recipe.seed)
        packer = Packer(documents, words.bos_token_id)
        train(model, packer, order, recipe.training, seed=recipe.seed, state_dir=state)
        if folder is None:
            return
        unpack(model)
        model.save_pretrained(folder)
        shutil.copy(state / LOG, folder)


@backbone.command()
def vision(preset: PresetName, train: Folder, tokenizer: Folder, out: Folder, state: State) -> None:
    """Train a small CLIP on the pictures and keep its vision tower, or fetch one."""
    from prior.backbones import hub_vision, train_vision
    from prior.corpus.store import read_corpus
    from prior.files import whole
    from prior.state import private

    settings = _load(preset).backbones.vision
    if isinstance(settings, str):
        with whole(out) as folder:
            hub_vision(settings, folder)
        return
    recipe = settings.scratch
    _training(recipe.threads)
    words = _tokenizer(tokenizer)
    with private(state, settings=recipe, inputs=_fingerprints(train, words)), whole(out) as folder:
        train_vision(read_corpus(train), words, recipe, folder, state)


@app.command()
def reference(
    preset: PresetName,
    train: Folder,
    val: Folder,
    text_only: Folder,
    tokenizer: Folder,
    llm: Folder,
    out: Folder,
    state: State,
) -> None:
    """Train the text-only reference LLM on the captions without the pictures."""
    from prior.corpus.store import fingerprint, read_corpus
    from prior.packing import tokenize_texts
    from prior.reference import train_reference

    settings = _load(preset).reference
    _training(settings.training.threads)
    words = _tokenizer(tokenizer)
    inputs = _fingerprints(train, words, llm=llm)
    extra = None
    if settings.text_only:
        inputs["text_only"] = fingerprint(text_only)
        records = read_corpus(text_only)
        extra = tokenize_texts(records["id"], records["text"], words)
    quality = train_reference(
        llm,
        words,
        _captions(train, words, image=False),
        _captions(val, words, image=False),
        settings,
        out,
        state,
        inputs,
        extra=extra,
    )
    for name, parts in quality.items():
        for part, values in parts.items():
            print(f"{name}, {part}: perplexity {values['perplexity']:.2f}, mean p_r {values['mean_p_r']:.3f}")


@app.command()
def score(preset: PresetName, train: Folder, tokenizer: Folder, reference: Folder, out: Folder) -> None:
    """Store log p_r of every caption token."""
    from tqdm import tqdm

    from prior.reference import score as score_captions
    from prior.scores import write_scores

    settings = _load(preset)
    _threads(settings.reference.training.threads)
    words = _tokenizer(tokenizer)
    documents = _captions(train, words, image=False)
    with tqdm(unit="row", desc="scoring") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        logprob = score_captions(reference, words, documents, settings.reference, progress)
    write_scores(out, documents, logprob, _fingerprints(train, words))


@app.command()
def pretrain(
    preset: PresetName,
    run: Runs,
    train: Folder,
    val: Folder,
    tokenizer: Folder,
    llm: Folder,
    runs: RunsFolder,
    state: State,
    vision: Annotated[Path | None, typer.Option()] = None,
    scores: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Pre-train LVLMs, each under its objective on its data scale, one after the other."""
    from dataclasses import replace

    from prior import runs as training
    from prior.corpus.store import fingerprint
    from prior.scores import align
    from prior.state import clear

    settings = _load(preset)
    _training(settings.pretrain.threads)
    words = _tokenizer(tokenizer)
    inputs = _fingerprints(train, words, llm=llm, vision=vision, scores=scores) | {"heldout": fingerprint(val)}
    documents = _captions(train, words)
    if scores is not None:
        documents = replace(documents, ref_logprob=align(documents, scores, _fingerprints(train, words)))
    heldout = _captions(val, words, limit=settings.evaluation.loss_captions)
    for name in run:
        try:
            training.pretrain(
                parse_run(name), settings, words, llm, vision, documents, heldout, runs / name / "pretrain",
                state / name / "pretrain", inputs, keep=len(run) > 1,
            )  # fmt: skip
        except CorpusTooSmall as error:
            raise UserError(f"scales: {name}: {error}; add captions or lower the scale") from None
    for name in run:
        clear(state / name / "pretrain")


@app.command()
def tune(
    preset: PresetName,
    run: Runs,
    train: Folder,
    questions: Folder,
    tokenizer: Folder,
    runs: RunsFolder,
    state: State,
) -> None:
    """Teach pre-trained LVLMs to answer questions about training pictures."""
    from prior import runs as training
    from prior.corpus.store import read_corpus
    from prior.packing import tokenize_exchanges
    from prior.state import clear

    settings = _load(preset)
    assert settings.tune is not None
    _training(settings.tune.training.threads)
    words = _tokenizer(tokenizer)
    pictures = read_corpus(train).select_columns(["id", "image"])
    place = {name: index for index, name in enumerate(pictures["id"])}
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    documents = tokenize_exchanges(
        [f"{number}" for number in range(len(asked))],
        [item["prompt"] for item in asked],
        [item["answer"] for item in asked],
        words,
        lambda index: pictures[place[asked[index]["id"]]]["image"],
    )
    for name in run:
        checkpoint = runs / name / "pretrain/final"
        inputs = _fingerprints(train, words, questions=questions, checkpoint=checkpoint)
        training.tune(
            parse_run(name), settings, checkpoint, words, documents, runs / name / "tuned", state / name / "tuned",
            inputs, keep=len(run) > 1,
        )  # fmt: skip
    for name in run:
        clear(state / name / "tuned")


def _load(name: str) -> Preset:
    """A preset whose objectives exist."""
    from prior.weighting import check_objective

    preset = load_preset(name)
    for key, entry in preset.objectives.items():
        check_objective(key, entry.kind, entry.parameters())
    return preset


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from prior.backbones import load_tokenizer

    return load_tokenizer(folder)


def _captions(
    folder: Path, tokenizer: PreTrainedTokenizerFast, image: bool = True, limit: int | None = None
) -> Documents:
    from prior.corpus.store import read_corpus
    from prior.packing import tokenize_captions

    return tokenize_captions(read_corpus(folder), tokenizer, image, limit)


def _fingerprints(corpus: Path, tokenizer: PreTrainedTokenizerFast, **others: Path | None) -> dict[str, str]:
    """Fingerprints of a split, of the tokenizer, and of those other files and folders that are given."""
    from prior import files
    from prior.corpus.store import fingerprint
    from prior.scores import tokenizer_fingerprint

    prints = {"corpus": fingerprint(corpus), "tokenizer": tokenizer_fingerprint(tokenizer)}
    return prints | {name: files.fingerprint(path) for name, path in others.items() if path is not None}


def _threads(count: int) -> None:
    """A fixed number of threads per job: results are the same bit for bit whatever else the machine does."""
    import torch

    torch.set_num_threads(count)
    torch.set_num_interop_threads(1)


def _training(threads: int) -> None:
    """Training takes a fixed number of threads and heeds signals and time limits."""
    _threads(threads)
    stopping.listen()


def _progress(items: Any, total: int, what: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, mininterval=1.0)


if __name__ == "__main__":
    main()
