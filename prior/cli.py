"""The command line of the method: one command per stage, each reading files and writing files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prior import processes
from prior.config import (
    LLM,
    HubModel,
    Preset,
    ScenesCorpus,
    Vision,
    WebDatasetCorpus,
    parse_run,
    parse_tokens,
    shard_names,
)
from prior.console import (
    Folder,
    PresetName,
    Runs,
    RunsFolder,
    State,
    begin_long_work,
    checked_preset,
    progress,
    run,
    use_threads,
)
from prior.errors import CorpusTooSmall, UserError

if TYPE_CHECKING:
    from prior.documents import Documents

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
backbone = typer.Typer(no_args_is_help=True, help="Tokenizer, base LLM and vision tower: fetched or trained here.")
app.add_typer(backbone, name="backbone")


def main() -> None:
    """Entry point of `prior`."""
    run(app)


@app.command()
def corpus(
    preset: PresetName,
    split: Annotated[str, typer.Option(help="train, val or text_only.")],
    out: Folder,
    shard: Annotated[int, typer.Option(help="Which part of the training split, from 0.")] = 0,
    files: Annotated[Path | None, typer.Option(help="Where the tar files of a WebDataset lie.")] = None,
) -> None:
    """Write one shard of a split of the corpus."""
    from prior.corpus import splits, store

    settings = checked_preset(preset).corpus
    if split == "text_only":
        assert not isinstance(settings, WebDatasetCorpus)
        texts, total = splits.texts(settings)
        store.write_texts(progress(texts, total, split), out)
    else:
        records, total = splits.pairs(settings, split, shard, files)
        store.write_corpus(progress(records, total, split), out)


@app.command()
def tokens(train: Folder, tokenizer: Folder, out: Folder) -> None:
    """Tokenise the captions of one shard."""
    from prior.backbones import load_tokenizer
    from prior.corpus.store import fingerprint, read_corpus
    from prior.tokens import write_tokens

    write_tokens(out, read_corpus(train), load_tokenizer(tokenizer), fingerprint(train))


@app.command()
def count(preset: PresetName, tokens: Folder, out: Folder) -> None:
    """Count the captions and their tokens; refuse data scales beyond them before anything is trained."""
    from prior.documents import nested_subset
    from prior.files import write_json
    from prior.tokens import read_tokens, shard_files

    settings = checked_preset(preset)
    largest = settings.scales[-1]
    documents = read_tokens(shard_files(tokens, shard_names(settings.corpus, "train")))
    if len(set(documents.ids)) < len(documents):
        raise UserError(f"{tokens}: shards share ids of captions; give each caption of the source an id of its own")
    try:
        nested_subset(documents, parse_tokens(largest), seed=0)
    except CorpusTooSmall as error:
        raise UserError(f"scales: {largest}: {error}; add captions or lower the scale") from None
    write_json(out, {"captions": len(documents), "tokens": int(documents.targets.lengths.sum())})


@app.command()
def fetch(
    preset: PresetName,
    source: Annotated[str, typer.Argument(help="Id on the hub of a model, or of a dataset with --file.")],
    out: Folder,
    file: Annotated[str | None, typer.Option(help="One file of a dataset.")] = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Of a model: with its weights.")] = True,
) -> None:
    """Fetch a model or a file from the hub, at the revision that the preset's lock file holds."""
    from prior import hub
    from prior.presets import lock_file

    if file:
        hub.fetch_file(source, file, out, lock_file(preset))
    else:
        hub.fetch_model(source, out, lock_file(preset), weights=weights)


@app.command()
def questions(preset: PresetName, out: Folder) -> None:
    """Write what models are tuned on, as JSON lines: questions about the generated world, or conversations."""
    from prior.corpus.questions import exchange, tuning_questions
    from prior.files import whole

    settings = checked_preset(preset)
    assert settings.tune is not None
    if told := settings.tune.conversations:
        from prior.corpus.conversations import picture_size, read_conversations

        said = read_conversations(
            Path(told.file), Path(told.images), settings.tune.questions, settings.tune.seed, told.max_bad_fraction
        )
        # A document without a picture would train nothing of what looks at pictures.
        asked: Any = (
            {
                "id": item["id"],
                "image": item["image"],
                "size": picture_size(Path(told.images, item["image"])),
                "turns": [[exchange(prompt), f" {answer}"] for prompt, answer in item["turns"]],
            }
            for item in said
            if item["image"]
        )
    else:
        world = settings.corpus
        assert isinstance(world, ScenesCorpus)
        made = tuning_questions(settings.tune.questions, settings.tune.seed, world.train, world.seed)
        asked = ({"id": item["id"], "turns": [[item["prompt"], item["answer"]]]} for item in made)
    with whole(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for item in progress(asked, settings.tune.questions, "questions"):
            stream.write(json.dumps(item) + "\n")


Hub = Annotated[Path | None, typer.Option("--hub", help="What was fetched; by default what the preset names.")]


@backbone.command()
def tokenizer(
    preset: PresetName,
    out: Folder,
    hub: Hub = None,
    train: Annotated[Path | None, typer.Option()] = None,
    text_only: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Train a tokenizer on the captions and the text-only split, or prepare one that was fetched."""
    from prior.backbones import hub_tokenizer, train_tokenizer
    from prior.corpus.store import read_corpus
    from prior.files import whole

    whole_preset = checked_preset(preset)
    settings = whole_preset.tokenizer
    if isinstance(settings, str):
        result = hub_tokenizer(str(hub or settings))
    else:
        assert train and text_only
        captions = read_corpus(train, shard_names(whole_preset.corpus, "train"))
        texts = [*captions["caption"], *read_corpus(text_only)["text"]]
        result = train_tokenizer(texts, settings.scratch)
    with whole(out) as folder:
        result.save_pretrained(folder)


@backbone.command()
def llm(
    preset: PresetName,
    tokenizer: Folder,
    out: Folder,
    state: State,
    hub: Hub = None,
    text_only: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Pre-train a small base LLM on the text-only split, or prepare one that was fetched."""
    import numpy as np

    from prior.backbones import check_config, hub_llm, load_tokenizer, new_llm
    from prior.files import whole

    whole_preset = checked_preset(preset)
    settings = whole_preset.backbones.llm
    words = load_tokenizer(tokenizer)
    if not isinstance(settings, LLM):
        # New embeddings are drawn from the old ones' covariance, whose last bits depend on the number of threads.
        use_threads(1)
        if not processes.first():
            return
        with whole(out) as folder:
            source = str(hub or whole_preset.backbones.hub_llm)
            if isinstance(settings, HubModel):
                check_config(Path(source), settings.config, "llm")
            hub_llm(source, words).save_pretrained(folder)
        return
    from prior.corpus.store import fingerprint, read_corpus
    from prior.documents import tokenize_texts
    from prior.models.attention import unpack
    from prior.models.weights import export
    from prior.packing import Packer, repeat_order
    from prior.state import private
    from prior.tokens import tokenizer_fingerprint
    from prior.training import LOG, train

    assert text_only is not None
    recipe = settings.scratch
    begin_long_work(recipe.training.threads)
    inputs = {"corpus": fingerprint(text_only), "tokenizer": tokenizer_fingerprint(words)}
    made_from: dict[str, Any] = {"settings": recipe, "inputs": inputs}
    with private(state, **made_from), processes.first_only(lambda: whole(out)) as folder:
        records = read_corpus(text_only)
        documents = tokenize_texts(records["id"], records["text"], words)
        model = new_llm(recipe, words)
        first = np.random.default_rng([recipe.seed, 31]).permutation(len(documents))
        order = repeat_order(first, recipe.training.epochs, recipe.seed)
        packer = Packer(documents, words.bos_token_id)
        job = whole_preset.jobs.llm
        train(model, packer, order, recipe.training, seed=recipe.seed, state_dir=state, scaling=job)
        unpack(model)
        export(model, folder)
        if folder is not None:
            shutil.copy(state / LOG, folder)


@backbone.command()
def vision(
    preset: PresetName,
    out: Folder,
    state: State,
    hub: Hub = None,
    train: Annotated[Path | None, typer.Option()] = None,
    tokens: Annotated[Path | None, typer.Option()] = None,
    tokenizer: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Train a small CLIP on the pictures and keep its vision tower, or prepare one that was fetched."""
    from prior.backbones import check_config, hub_vision, load_tokenizer, train_vision
    from prior.files import whole
    from prior.state import private

    whole_preset = checked_preset(preset)
    settings = whole_preset.backbones.vision
    if not isinstance(settings, Vision):
        with whole(out) as folder:
            source = str(hub or whole_preset.backbones.hub_vision)
            if isinstance(settings, HubModel):
                check_config(Path(source), settings.config, "vision")
            hub_vision(source, folder)
        return
    assert train and tokens and tokenizer
    recipe = settings.scratch
    begin_long_work(recipe.threads)
    documents, inputs = _captions(whole_preset, "train", tokens, train)
    with private(state, settings=recipe, inputs=inputs), whole(out) as folder:
        train_vision(documents, load_tokenizer(tokenizer), recipe, folder, state, whole_preset.jobs.vision.loaders)


@app.command()
def reference(
    preset: PresetName,
    tokens: Folder,
    tokenizer: Folder,
    llm: Folder,
    out: Folder,
    state: State,
    text_only: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Train the text-only reference LLM on the captions without the pictures."""
    from prior import files
    from prior.backbones import load_tokenizer
    from prior.corpus.store import fingerprint, read_corpus
    from prior.documents import tokenize_texts
    from prior.reference import train_reference

    whole_preset = checked_preset(preset)
    settings = whole_preset.reference
    begin_long_work(settings.training.threads)
    words = load_tokenizer(tokenizer)
    documents, inputs = _captions(whole_preset, "train", tokens / "train")
    heldout, _ = _captions(whole_preset, "val", tokens / "val")
    if processes.first():
        inputs["llm"] = files.fingerprint(llm)
    extra = None
    if settings.text_only:
        assert text_only is not None
        inputs["text_only"] = fingerprint(text_only)
        records = read_corpus(text_only)
        extra = tokenize_texts(records["id"], records["text"], words)
    quality = train_reference(
        llm, words, documents, heldout, settings, out, state, inputs, extra, whole_preset.jobs.reference
    )
    for name, parts in quality.items():
        for part, values in parts.items():
            print(f"{name}, {part}: perplexity {values['perplexity']:.2f}, mean p_r {values['mean_p_r']:.3f}")


@app.command()
def score(preset: PresetName, tokens: Folder, tokenizer: Folder, reference: Folder, out: Folder) -> None:
    """Store log p_r of every caption token of one shard."""
    from tqdm import tqdm

    from prior.backbones import load_tokenizer
    from prior.reference import score as score_captions
    from prior.scores import write_scores
    from prior.tokens import metadata, read_tokens

    settings = checked_preset(preset)
    use_threads(settings.reference.training.threads)
    documents = read_tokens([tokens])
    with tqdm(unit="row", desc="scoring") as bar:

        def scored(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        logprob = score_captions(reference, load_tokenizer(tokenizer), documents, settings.reference, scored)
    write_scores(out, documents, logprob, metadata(tokens))


@app.command()
def pretrain(
    preset: PresetName,
    run: Runs,
    corpus: Folder,
    tokens: Folder,
    tokenizer: Folder,
    llm: Folder,
    runs: RunsFolder,
    state: State,
    vision: Annotated[Path | None, typer.Option()] = None,
    scores: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Pre-train LVLMs, each under its objective on its data scale, one after the other."""
    from dataclasses import replace

    from prior import files
    from prior import runs as training
    from prior.backbones import load_tokenizer
    from prior.scores import align
    from prior.state import clear
    from prior.tokens import shard_files

    settings = checked_preset(preset)
    begin_long_work(settings.pretrain.threads)
    documents, inputs = _captions(settings, "train", tokens / "train", corpus / "train")
    heldout, prints = _captions(settings, "val", tokens / "val", corpus / "val", settings.evaluation.loss_captions)
    inputs["heldout"] = prints["corpus"]
    # Reading all weights takes a while, and the first process alone writes down what they were.
    for name, path in (("llm", llm), ("vision", vision), ("scores", scores)):
        if path is not None and processes.first():
            inputs[name] = files.fingerprint(path)
    if scores is not None:
        names = shard_names(settings.corpus, "train")
        logprob = align(shard_files(tokens / "train", names), shard_files(scores, names))
        documents = replace(documents, ref_logprob=logprob)
    for name in run:
        try:
            training.pretrain(
                parse_run(name), settings, load_tokenizer(tokenizer), llm, vision, documents, heldout,
                runs / name / "pretrain", state / name / "pretrain", inputs, keep=len(run) > 1,
            )  # fmt: skip
        except CorpusTooSmall as error:
            raise UserError(f"scales: {name}: {error}; add captions or lower the scale") from None
    for name in run:
        clear(state / name / "pretrain")


@app.command()
def tune(
    preset: PresetName,
    run: Runs,
    questions: Folder,
    tokenizer: Folder,
    runs: RunsFolder,
    state: State,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the split that the questions are about.")] = None,
) -> None:
    """Teach pre-trained LVLMs to answer questions about pictures."""
    from dataclasses import replace

    import numpy as np

    from prior import files
    from prior import runs as training
    from prior.backbones import load_tokenizer
    from prior.corpus.store import fingerprint, read_corpus
    from prior.documents import tokenize_exchanges
    from prior.state import clear
    from prior.tokens import tokenizer_fingerprint

    settings = checked_preset(preset)
    assert settings.tune is not None
    begin_long_work(settings.tune.training.threads)
    words = load_tokenizer(tokenizer)
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    inputs = {"tokenizer": tokenizer_fingerprint(words), "questions": files.fingerprint(questions)}
    if settings.tune.conversations:
        folder = Path(settings.tune.conversations.images)

        def picture(index: int) -> bytes:
            return (folder / asked[index]["image"]).read_bytes()
    else:
        assert corpus is not None
        shards = shard_names(settings.corpus, "train")
        inputs["corpus"] = " ".join(fingerprint(corpus / name) for name in shards)
        pictures = read_corpus(corpus, shards).select_columns(["id", "image"])
        place = {name: index for index, name in enumerate(pictures["id"])}

        def picture(index: int) -> bytes:
            return pictures[place[asked[index]["id"]]]["image"]

    names = [f"{number}" for number in range(len(asked))]
    documents = tokenize_exchanges(names, [item["turns"] for item in asked], words, picture)
    if settings.tune.conversations:
        documents = replace(documents, sizes=np.array([item["size"] for item in asked]))
    for name in run:
        checkpoint = runs / name / "pretrain/final"
        weights = {"checkpoint": files.fingerprint(checkpoint)} if processes.first() else {}
        training.tune(
            parse_run(name), settings, checkpoint, words, documents, runs / name / "tuned", state / name / "tuned",
            inputs | weights, keep=len(run) > 1,
        )  # fmt: skip
    for name in run:
        clear(state / name / "tuned")


def _captions(
    preset: Preset, split: str, tokens: Path, corpus: Path | None = None, limit: int | None = None
) -> tuple[Documents, dict[str, str]]:
    """The captions of a split, with their pictures if `corpus` is given, and the fingerprints of what they are from."""
    from prior.documents import head
    from prior.tokens import fingerprints, metadata, read_tokens, shard_files

    names = shard_names(preset.corpus, split)
    found = shard_files(tokens, names)
    image = None
    if corpus is not None:
        from prior.corpus.store import fingerprint, read_corpus

        for name, file in zip(names, found, strict=True):
            if metadata(file)["corpus"] != fingerprint(corpus / name):
                raise UserError(f"{file}: these are not the captions of {corpus / name}; delete it and start again")
        pictures = read_corpus(corpus, names).select_columns(["image"])

        def image(index: int) -> bytes:
            return pictures[index]["image"]

    documents = read_tokens(found, image)
    return documents if limit is None else head(documents, limit), fingerprints(found)


if __name__ == "__main__":
    main()
