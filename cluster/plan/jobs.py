"""The jobs of a preset, with what each computes, holds in memory and waits for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cluster.plan import costs
from cluster.plan.costs import Bytes, Document
from cluster.plan.shapes import Shape, vision_config
from cluster.plan.work import Cell, Work
from prior.config import LLM, Tokenizer, Training, Vision, WebDatasetCorpus
from prior.config.jobs import Job, ParallelJob
from prior.config.patterns import expand
from prior.models.hlvlm import patch_count
from prior.weighting import REGISTRY

# The row in which `prior.scores.token_logprobs` computes.
SCORED_ROW = 4096


@dataclass(frozen=True)
class Task:
    """Jobs that are alike.

    Attributes
    ----------
    kind, name
        What they do; the rule of the workflow that makes them, and which of its jobs they are.
    count
        How many.
    after
        Names of the tasks that they wait for.
    hours, flops
        Of one of them; of downloads, which share a network, hours are those of all.
    gpus
        Of one of them, on all of its nodes.
    memory
        Bytes of one GPU, or of one process without GPUs, by what holds them; empty where there is no model.
    """

    kind: str
    name: str
    count: int
    after: tuple[str, ...]
    hours: float
    flops: float = 0.0
    gpus: int = 0
    memory: Bytes = field(default_factory=dict)

    @property
    def rule(self) -> str:
        return self.name.split()[0]

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    @property
    def gpu_hours(self) -> float:
        return self.count * self.gpus * self.hours


def tasks_of(work: Work) -> list[Task]:
    """All jobs; each comes after those that it waits for."""
    return [*_data(work), *_backbones(work), *_scores(work), *_trainings(work), *_results(work)]


def longest_chain(tasks: Sequence[Task]) -> tuple[float, list[str]]:
    """Hours of the longest way through the jobs if each gets its GPUs at once, and the names of those on it.

    Each of `tasks` comes after those that it waits for.
    """
    best: dict[str, tuple[float, list[str]]] = {}
    for task in tasks:
        before = max((best[name] for name in task.after), default=(0.0, []), key=lambda way: way[0])
        best[task.name] = (before[0] + task.hours, [*before[1], task.name])
    return max(best.values(), key=lambda way: way[0])


def largest(tasks: Sequence[Task]) -> dict[str, Task]:
    """Of each kind of job and architecture the one that takes most memory."""
    found: dict[str, Task] = {}
    for task in tasks:
        if task.memory:
            name = " ".join([task.kind, *task.name.split()[1:2]])
            found[name] = max(found.get(name, task), task, key=lambda one: one.peak)
    return found


def _data(work: Work) -> Iterator[Task]:
    preset, corpus = work.preset, work.preset.corpus
    fetched, scratch = work.fetched, isinstance(preset.tokenizer, Tokenizer)
    models = [name for name in fetched if name != "files" and (name != "vision" or preset.architectures.hlvlm)]
    if isinstance(corpus, WebDatasetCorpus) and "files" in fetched:
        yield _fetch(work, "fetch_file", len(expand(corpus.train)) + len(expand(corpus.val)), fetched["files"])
    if models:
        yield _fetch(work, "fetch_model", len(models), sum(fetched[name] for name in models))
    text_only = scratch or isinstance(preset.backbones.llm, LLM) or preset.reference.text_only
    yield _small(
        work, "corpus", "corpus", corpus.shards + 1 + text_only, *(["fetch_file"] if "files" in fetched else [])
    )
    first = ["corpus"] if scratch else ["fetch_model"] if "tokenizer" in fetched else []
    yield _small(work, "tokenizer", "tokenizer", 1, *first)
    yield _small(work, "tokens", "tokens", corpus.shards + 1, "corpus", "tokenizer")
    yield _small(work, "tokens", "count", 1, "tokens")
    if preset.tune:
        yield _small(work, "corpus", "questions", 1)
    names = list(preset.benchmarks)
    if work.official:
        yield _small(work, "benchmarks", "official_table", 1)
        yield _small(work, "benchmarks", "benchmark_official", len(work.official), "official_table")
    for name in names:
        if name not in work.official:
            yield _small(work, "benchmarks", f"benchmark_{name.lower()}", 1)
    if names:
        made = ["benchmark_official"] if work.official else []
        yield _small(work, "benchmarks", "prompts", len(names), *made)


def _backbones(work: Work) -> Iterator[Task]:
    preset = work.preset
    llm, vision = preset.backbones.llm, preset.backbones.vision
    if isinstance(llm, LLM):
        training = llm.scratch.training
        base = work.models["reference"]
        if base.adapters:
            count = base.parameters - base.adapters
            base = replace(base, parameters=count, trainable=count, adapters=0, trained=frozenset({"llm"}))
        captions = work.texts * training.epochs
        yield _text_training(work, "llm", base, training, captions, "corpus", "tokenizer")
    else:
        yield _small(work, "llm", "llm", 1, "tokenizer", *(["fetch_model"] if "llm" in work.fetched else []))
    if preset.architectures.hlvlm is None:
        return
    if isinstance(vision, Vision):
        tower, seen = work.tower, patch_count(vision_config(preset)) + 1
        # The text tower of the CLIP that is trained has the same layers and reads captions.
        text = 2 * tower.weights * work.given.caption_tokens * 3
        pictures = 2 * tower.weights * seen * 3 + 3 * costs.attention(tower, seen**2)
        flops = work.captions * vision.scratch.epochs * (text + pictures)
        hours, gpus = _computed(work, preset.jobs.vision, flops)
        yield Task("vision", "vision", 1, ("corpus", "tokens"), hours, flops, gpus)
    else:
        yield _small(work, "vision", "vision", 1, *(["fetch_model"] if "vision" in work.fetched else []))


def _text_training(
    work: Work, kind: str, shape: Shape, training: Training, captions: float, *after: str, read: float = 0
) -> Task:
    """A training on captions without pictures; some captions are only read when it is done."""
    job: ParallelJob = getattr(work.preset.jobs, kind)
    flops = captions * costs.flops(shape, work.text, True, job.gradient_checkpointing)
    flops += read * costs.flops(shape, work.text, False)
    hours, gpus = _computed(work, job, flops)
    memory = _training_bytes(work, shape, training, job, work.text)
    return Task(kind, kind, 1, after, hours, flops, gpus, memory)


def _scores(work: Work) -> Iterator[Task]:
    settings, job = work.preset.reference, work.preset.jobs.scores
    folds = settings.cross_fit
    shown = work.captions + (work.texts if settings.text_only else 0)
    trained = shown * settings.training.epochs * ((folds - 1) if folds else 1)
    quality = (min(settings.quality_captions, work.captions) + work.heldout) * max(folds, 1)
    shape, shards = work.models["reference"], work.preset.corpus.shards
    yield _text_training(work, "reference", shape, settings.training, trained, "tokens", "llm", read=quality)
    flops = work.captions / shards * costs.flops(shape, work.text, False)
    hours, gpus = _computed(work, job, flops)
    bf16 = settings.training.bf16
    memory = costs.inference_bytes(shape, SCORED_ROW, SCORED_ROW, bf16=bf16)
    yield Task("scores", "scores", shards, ("reference", "tokens"), hours, flops, gpus, memory)
    flops = work.heldout * costs.flops(shape, work.text, False)
    hours, gpus = _computed(work, job, flops)
    yield Task("scores", "heldout_scores", 1, ("reference", "tokens"), hours, flops, gpus, memory)


def _trainings(work: Work) -> Iterator[Task]:
    preset = work.preset
    together = preset.seeds if preset.seeds_together else 1
    for cell in work.cells:
        yield _pretrain(work, cell, together)
        if preset.tune:
            yield _tune(work, cell, together)
        if preset.benchmarks:
            stage = "tune" if preset.tune else "pretrain"
            names, pictures = list(preset.benchmarks), preset.evaluation.pictures
            yield _predict(
                work, "predict", cell, f"{stage} {cell.name}", names, pictures, preset.seeds // together, together
            )
        if cell.kept and (names := preset.asked_on_the_way):
            count = preset.seeds // together * len(cell.kept)
            yield _predict(work, "predict_step", cell, f"pretrain {cell.name}", names, (True,), count, together)


def _pretrain(work: Work, cell: Cell, together: int) -> Task:
    preset, shape = work.preset, work.models[cell.arch]
    job, training = preset.jobs.pretrain, preset.pretraining(cell.arch)
    needs = REGISTRY[preset.objectives[cell.objective].kind].needs_scores
    after = ["tokens", "llm"] + ["vision"] * (cell.arch == "hlvlm") + ["scores"] * needs
    trained = cell.captions * training.epochs * cell.share
    flops = trained * costs.flops(shape, cell.document, True, job.gradient_checkpointing)
    heldout = min(preset.evaluation.loss_captions, work.heldout)
    measured = max(preset.evaluation.trajectory_points, 1) * heldout
    flops += measured * (costs.flops(shape, cell.document, False) + costs.flops(shape, work.text, False))
    hours, gpus = _computed(work, job, flops * together)
    memory = _training_bytes(work, shape, training, job, cell.document)
    return Task(
        "pretrain", f"pretrain {cell.name}", preset.seeds // together, tuple(after), hours, flops * together, gpus,
        memory,
    )  # fmt: skip


def _tune(work: Work, cell: Cell, together: int) -> Task:
    preset, shape = work.preset, work.models[cell.arch]
    assert preset.tune is not None
    job, training = preset.jobs.tune, preset.tune.training
    said = Document(labels=150, prompt=100) if preset.tune.conversations else Document(labels=5, prompt=30)
    document = work.shown(cell.arch, said)
    asked = preset.tune.questions * training.epochs * together
    flops = asked * costs.flops(shape, document, True, job.gradient_checkpointing)
    hours, gpus = _computed(work, job, flops)
    memory = _training_bytes(work, shape, training, job, document)
    name = f"tune {cell.name}"
    return Task(
        "tune", name, preset.seeds // together, (f"pretrain {cell.name}", "questions"), hours, flops, gpus, memory
    )


def _predict(
    work: Work,
    rule: str,
    cell: Cell,
    before: str,
    names: list[str],
    pictures: tuple[bool, ...],
    count: int,
    together: int,
) -> Task:
    """Answers to benchmarks, with pictures and perhaps without; `together` checkpoints one after the other."""
    preset, shape, settings = work.preset, work.models[cell.arch], work.preset.evaluation
    blind = Document(labels=1, prompt=work.given.prompt_tokens - 1)
    # A token of an answer passes through all layers and the head.
    token = 2 * shape.decoder.weights + 2 * shape.vocabulary * shape.decoder.width
    flops = steps = 0.0
    for name in names:
        caption = preset.benchmarks[name].answer == "caption"
        longest = settings.max_caption_tokens if caption else settings.max_new_tokens
        for shown in pictures:
            asked = work.shown(cell.arch, blind) if shown else blind
            flops += work.rows(name) * (costs.flops(shape, asked, False) + longest * token)
            steps += math.ceil(work.rows(name) / settings.batch_size) * longest
    hours, gpus = _computed(work, preset.jobs.predict, flops * together)
    if gpus:
        hours += together * costs.decoding_seconds(
            shape, steps, work.given.gpu_bandwidth_tb * 1e12, work.given.decode_ms / 1000
        ) / 3600  # fmt: skip
    asked = work.shown(cell.arch, blind)
    batch, longest = settings.batch_size, max(settings.max_new_tokens, settings.max_caption_tokens)
    memory = costs.inference_bytes(
        shape,
        batch * asked.positions,
        batch,
        bf16=preset.pretrain.bf16,
        cached=batch * (asked.positions + longest),
        pictures=batch,
        patches=asked.patches,
    )
    after = (before, "prompts")
    return Task("predict", f"{rule} {cell.name}", count, after, hours, flops * together, gpus, memory)


def _results(work: Work) -> Iterator[Task]:
    preset = work.preset
    captioned = [name for name, entry in preset.benchmarks.items() if entry.answer == "caption"]
    others = len(preset.benchmarks) - len(captioned)
    answered = [f"predict {cell.name}" for cell in work.cells] if preset.benchmarks else []
    answered += [f"predict_step {cell.name}" for cell in work.cells if cell.kept and preset.asked_on_the_way]
    trained = [f"pretrain {cell.name}" for cell in work.cells]
    last = [f"tune {cell.name}" for cell in work.cells] if preset.tune else trained
    before = list(trained)
    if others:
        yield _small(work, "score", "score", others * (1 if preset.seeds_together else len(preset.runs())), *answered)
        before.append("score")
        if not preset.seeds_together:
            yield _small(work, "score", "score_degenerate", others, "prompts")
    if captioned:
        yield _small(work, "score", "score_captions", len(captioned), *answered)
        before.append("score_captions")
    yield _small(work, "results", "metrics", 1, *before)
    yield _small(work, "results", "sources", 1)
    yield _small(work, "results", "words", 1, "scores")
    yield _small(work, "results", "mutual", 1, "heldout_scores", *trained)
    yield _small(work, "results", "training", 1, *trained)
    yield _small(work, "results", "provenance", 1, *last)
    yield _small(work, "results", "quality", 1, "reference")
    yield _small(work, "results", "costs", 1, "metrics")
    yield _small(work, "results", "fits", 1, "metrics")
    gathered = ("fits", "sources", "words", "mutual", "training", "provenance", "quality", "costs")
    yield _small(work, "results", "outcomes", 1, *gathered)
    yield _small(work, "results", "claims", 1, *gathered)
    yield _small(work, "results", "viewer", 1, "metrics", "heldout_scores")
    yield _small(work, "results", "report", 1, "outcomes", "claims", "viewer")


def _small(work: Work, kind: str, rule: str, count: int, *after: str) -> Task:
    """Jobs without a model."""
    return Task(kind, rule, count, after, work.given.small_minutes / 60)


def _fetch(work: Work, rule: str, count: int, size: float) -> Task:
    """Downloads of so many bytes in all."""
    return Task("download", rule, count, (), size / (work.given.download_mb * 1e6) / 3600)


def _computed(work: Work, job: Job, flops: float) -> tuple[float, int]:
    """Hours that a job takes for so many FLOPs, starting included, and its GPUs."""
    nodes = job.nodes if isinstance(job, ParallelJob) else 1
    rate = work.given.gpu_tflops * 1e12 * work.given.utilisation if job.gpus_per_node else work.given.cpu_gflops * 1e9
    hours = flops / (rate * nodes * job.processes_per_node) / 3600
    return hours + (work.given.start_minutes / 60 if job.gpus_per_node else 0), nodes * job.gpus_per_node


def _training_bytes(work: Work, shape: Shape, training: Training, job: ParallelJob, document: Document) -> Bytes:
    """Of one GPU, while it trains on a row of such documents."""
    per_row = costs.documents_per_row(document.positions + 1, document.spread, training.row_tokens)
    return costs.training_bytes(
        shape,
        max(training.row_tokens, document.positions),
        per_row,
        document.patches,
        per_row * document.labels,
        bf16=training.bf16,
        processes=job.nodes * job.processes_per_node,
        fsdp=job.fsdp,
        checkpointing=job.gradient_checkpointing,
    )
