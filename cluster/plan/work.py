"""The jobs of a preset, with what each computes, holds in memory and waits for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from cluster.plan import costs
from cluster.plan.assumptions import Assumptions
from cluster.plan.costs import Bytes, Document
from cluster.plan.shapes import Shape, Stack, lvlm_shape, patches, reference_shape, stack_shape, vision_config
from eval.benchmarks import is_official
from prior.config import (
    LLM,
    FolderCorpus,
    HubModel,
    Objective,
    Preset,
    ScenesCorpus,
    Tokenizer,
    Training,
    Vision,
    WebDatasetCorpus,
    parse_tokens,
)
from prior.config.jobs import Job, ParallelJob
from prior.config.patterns import expand
from prior.errors import UserError
from prior.hub import is_local
from prior.models.ulvlm import patched_size
from prior.weighting import REGISTRY

# Rows of VLMEvalKit's files.
OFFICIAL_ROWS = {"MME": 2374, "POPE": 5127, "MMBench_DEV_EN": 4329, "MMStar": 1500, "SEEDBench_IMG": 14232}
# The row in which `prior.scores.token_logprobs` computes.
SCORED_ROW = 4096
# Whole private checkpoints that a training keeps (`prior.training.arguments`), and bytes of one trained parameter in
# them: the weight and AdamW's two moments in float32.
KEPT, PRIVATE = 2, 12


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


@dataclass(frozen=True)
class Cell:
    """The runs of one architecture, objective and scale.

    Attributes
    ----------
    captions, document
        Captions trained on, and what one is.
    per_row, rows, steps
        Captions in a row, rows, optimizer steps: of the whole schedule.
    taken
        Steps that are taken: an ablation ends early.
    kept
        Steps after which a checkpoint is kept, beside the last.
    """

    arch: str
    objective: str
    scale: str
    captions: int
    document: Document
    per_row: float
    rows: int
    steps: int
    taken: int
    kept: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.arch} {self.objective} {self.scale}"

    @property
    def share(self) -> float:
        """Of the schedule that is trained."""
        return self.taken / self.steps


def steps_of(captions: float, document: Document, training: Training) -> tuple[float, int, int]:
    """Captions in a row, rows and optimizer steps of a training on so many captions.

    Rows are planned with one token more for each caption than the model computes (`prior.packing.Packer.lengths`).
    """
    per_row = costs.documents_per_row(document.positions + 1, document.spread, training.row_tokens)
    rows = math.ceil(captions * training.epochs / per_row)
    return per_row, rows, math.ceil(rows / training.rows_per_step)


class Work:
    """A preset under some assumptions: its models, runs, tasks and files."""

    def __init__(self, preset: Preset, assumptions: Assumptions) -> None:
        self.preset = preset
        self.given = assumptions

    @cached_property
    def captions(self) -> int:
        """Of the training split.

        Raises
        ------
        UserError
            If the preset does not tell.
        """
        corpus = self.preset.corpus
        if self.given.captions:
            return self.given.captions
        if isinstance(corpus, ScenesCorpus):
            return corpus.train
        if isinstance(corpus, WebDatasetCorpus):
            return len(expand(corpus.train)) * self.given.captions_per_file
        raise UserError(
            f"preset '{self.preset.name}': how many captions the folder '{corpus.folder}' holds is known when they "
            "have been read; give --captions"
        )

    @cached_property
    def heldout(self) -> int:
        corpus = self.preset.corpus
        if isinstance(corpus, ScenesCorpus):
            return corpus.val
        if isinstance(corpus, FolderCorpus):
            return round(self.captions * corpus.val_fraction / (1 - corpus.val_fraction))
        return len(expand(corpus.val)) * self.given.captions_per_file

    @cached_property
    def texts(self) -> int:
        """Captions without a picture; of a folder they are not known."""
        return self.preset.corpus.text_only if isinstance(self.preset.corpus, ScenesCorpus) else 0

    @cached_property
    def models(self) -> dict[str, Shape]:
        """By name: ``reference`` and the architectures."""
        archs = self.preset.architectures.names()
        return {"reference": reference_shape(self.preset)} | {arch: lvlm_shape(arch, self.preset) for arch in archs}

    @property
    def text(self) -> Document:
        """A caption without its picture."""
        return Document(labels=self.given.caption_tokens, spread=self.given.caption_tokens * self.given.caption_spread)

    def shown(self, arch: str, document: Document) -> Document:
        """A document with a picture as an architecture reads it."""
        if arch == "hlvlm":
            count = patches(vision_config(self.preset))
            return replace(document, picture=count, patches=count)
        settings = self.preset.architectures.ulvlm
        assert settings is not None
        corpus = self.preset.corpus
        size = (corpus.image_size,) * 2 if isinstance(corpus, ScenesCorpus) else self.given.picture
        width, height = patched_size(*size, settings.patch_size, settings.max_side)
        columns, rows = width // settings.patch_size, height // settings.patch_size
        return replace(document, picture=rows * columns + rows + 1, patches=rows * columns)

    @cached_property
    def cells(self) -> list[Cell]:
        """The runs, by architecture, objective and scale."""
        preset = self.preset
        return [
            self._cell(arch, name, objective, scale)
            for arch in preset.architectures.names()
            for name, objective in preset.objectives.items()
            for scale in objective.scales or preset.scales
        ]

    def _cell(self, arch: str, name: str, objective: Objective, scale: str) -> Cell:
        captions = math.ceil(parse_tokens(scale) / self.given.caption_tokens)
        document = self.shown(arch, self.text)
        per_row, rows, steps = steps_of(captions, document, self.preset.pretraining(arch))
        taken = min(steps, objective.steps or steps)
        kept = tuple(step for step in self.preset.kept_steps(name, scale) if step < taken)
        return Cell(arch, name, scale, captions, document, per_row, rows, steps, taken, kept)

    @cached_property
    def warnings(self) -> list[str]:
        """What a reader should mend before anything is submitted."""
        found = []
        for cell in self.cells:
            asked = self.preset.kept_steps(cell.objective, cell.scale)
            limit = self.preset.objectives[cell.objective].steps
            if asked and asked[-1] >= cell.taken:
                found.append(
                    f"trajectory: until {asked[-1]} is not before the last step, {cell.taken}, of {cell.arch} at "
                    f"{cell.scale}; lower it, or rows_per_step"
                )
            if limit and limit > cell.steps:
                found.append(
                    f"objectives.{cell.objective}: {limit} steps are more than the {cell.steps} of {cell.arch} at "
                    f"{cell.scale}; lower them"
                )
        largest, have = self.preset.scales[-1], self.captions * self.given.caption_tokens
        if parse_tokens(largest) > have:
            found.append(
                f"scales: {largest} caption tokens are asked for, but {self.captions:,} captions of "
                f"{self.given.caption_tokens:g} have {have:,.0f}; lower the scale, or say better how long captions are"
            )
        for name, task in self.largest.items():
            if task.gpus and task.peak > (most := self.given.gpu_memory_gb * 1e9):
                found.append(f"{name}: needs {task.peak / 1e9:.0f} GB of a GPU that has {most / 1e9:g}")
        return list(dict.fromkeys(found))

    @cached_property
    def largest(self) -> dict[str, Task]:
        """Of each kind of job and architecture the one that takes most memory."""
        found: dict[str, Task] = {}
        for task in self.tasks:
            if task.memory:
                name = " ".join([task.kind, *task.name.split()[1:2]])
                found[name] = max(found.get(name, task), task, key=lambda one: one.peak)
        return found

    @cached_property
    def tasks(self) -> list[Task]:
        """All jobs; each comes after those that it waits for."""
        return [*self._data(), *self._backbones(), *self._scores(), *self._trainings(), *self._results()]

    @cached_property
    def chain(self) -> tuple[float, list[str]]:
        """Hours of the longest way through the jobs if each gets its GPUs at once, and the jobs on it."""
        return costs.longest_chain(
            {task.name: task.hours for task in self.tasks}, {task.name: task.after for task in self.tasks}
        )

    def _small(self, kind: str, rule: str, count: int, *after: str) -> Task:
        """Jobs without a model."""
        return Task(kind, rule, count, after, self.given.small_minutes / 60)

    def _fetch(self, rule: str, count: int, size: float) -> Task:
        """Downloads of so many bytes in all."""
        return Task("download", rule, count, (), size / (self.given.download_mb * 1e6) / 3600)

    def _computed(self, job: Job, flops: float) -> tuple[float, int]:
        """Hours that a job takes for so many FLOPs, starting included, and its GPUs."""
        nodes = job.nodes if isinstance(job, ParallelJob) else 1
        rate = (
            self.given.gpu_tflops * 1e12 * self.given.utilisation if job.gpus_per_node else self.given.cpu_gflops * 1e9
        )
        hours = flops / (rate * nodes * job.processes_per_node) / 3600
        return hours + (self.given.start_minutes / 60 if job.gpus_per_node else 0), nodes * job.gpus_per_node

    @cached_property
    def fetched(self) -> dict[str, float]:
        """Bytes that come from a hub: ``files`` of a dataset, and models."""
        preset = self.preset
        found: dict[str, float] = {}
        if isinstance(preset.corpus, WebDatasetCorpus) and not is_local(preset.corpus.source):
            found["files"] = (self.captions + self.heldout) * self.given.picture_kb * 1000
        if isinstance(preset.tokenizer, str) and not is_local(preset.tokenizer):
            found["tokenizer"] = 2e6
        # LLMs are published in bf16, CLIP in float32 and with a text tower that has a third of its weights.
        sizes = {
            "llm": 2 * self.models["reference"].parameters,
            "vision": 1.5 * 4 * self.tower.layers * self.tower.layer,
        }
        for name, size in sizes.items():
            entry = getattr(preset.backbones, name)
            source = entry.hub if isinstance(entry, HubModel) else entry
            if isinstance(source, str) and not is_local(source):
                found[name] = size
        return found

    @cached_property
    def tower(self) -> Stack:
        """Layers of the vision tower."""
        return stack_shape(vision_config(self.preset))

    @property
    def official(self) -> list[str]:
        """Benchmarks that are fetched."""
        return [name for name in self.preset.benchmarks if is_official(name, self.preset)]

    def _data(self) -> Iterator[Task]:
        preset, corpus = self.preset, self.preset.corpus
        fetched, scratch = self.fetched, isinstance(preset.tokenizer, Tokenizer)
        models = [name for name in fetched if name != "files" and (name != "vision" or preset.architectures.hlvlm)]
        if isinstance(corpus, WebDatasetCorpus) and "files" in fetched:
            yield self._fetch("fetch_file", len(expand(corpus.train)) + len(expand(corpus.val)), fetched["files"])
        if models:
            yield self._fetch("fetch_model", len(models), sum(fetched[name] for name in models))
        text_only = scratch or isinstance(preset.backbones.llm, LLM) or preset.reference.text_only
        yield self._small(
            "corpus", "corpus", corpus.shards + 1 + text_only, *(["fetch_file"] if "files" in fetched else [])
        )
        first = ["corpus"] if scratch else ["fetch_model"] if "tokenizer" in fetched else []
        yield self._small("tokenizer", "tokenizer", 1, *first)
        yield self._small("tokens", "tokens", corpus.shards + 1, "corpus", "tokenizer")
        yield self._small("tokens", "count", 1, "tokens")
        if preset.tune:
            yield self._small("corpus", "questions", 1)
        names = list(preset.benchmarks)
        if self.official:
            yield self._small("benchmarks", "official_table", 1)
            yield self._small("benchmarks", "benchmark_official", len(self.official), "official_table")
        for name in names:
            if name not in self.official:
                yield self._small("benchmarks", f"benchmark_{name.lower()}", 1)
        if names:
            made = ["benchmark_official"] if self.official else []
            yield self._small("benchmarks", "prompts", len(names), *made)

    def _backbones(self) -> Iterator[Task]:
        preset = self.preset
        llm, vision = preset.backbones.llm, preset.backbones.vision
        if isinstance(llm, LLM):
            training = llm.scratch.training
            base = self.models["reference"]
            if base.adapters:
                count = base.parameters - base.adapters
                base = replace(base, parameters=count, trainable=count, adapters=0, trained=frozenset({"llm"}))
            captions = self.texts * training.epochs
            yield self._text_training("llm", base, training, captions, "corpus", "tokenizer")
        else:
            yield self._small("llm", "llm", 1, "tokenizer", *(["fetch_model"] if "llm" in self.fetched else []))
        if preset.architectures.hlvlm is None:
            return
        if isinstance(vision, Vision):
            tower, seen = self.tower, patches(vision_config(preset)) + 1
            # The text tower of the CLIP that is trained has the same layers and reads captions.
            text = 2 * tower.weights * self.given.caption_tokens * 3
            pictures = 2 * tower.weights * seen * 3 + 3 * costs.attention(tower, seen**2)
            flops = self.captions * vision.scratch.epochs * (text + pictures)
            hours, gpus = self._computed(preset.jobs.vision, flops)
            yield Task("vision", "vision", 1, ("corpus", "tokens"), hours, flops, gpus)
        else:
            yield self._small("vision", "vision", 1, *(["fetch_model"] if "vision" in self.fetched else []))

    def _text_training(
        self, kind: str, shape: Shape, training: Training, captions: float, *after: str, read: float = 0
    ) -> Task:
        """A training on captions without pictures; some captions are only read when it is done."""
        job: ParallelJob = getattr(self.preset.jobs, kind)
        flops = captions * costs.flops(shape, self.text, True, job.gradient_checkpointing)
        flops += read * costs.flops(shape, self.text, False)
        hours, gpus = self._computed(job, flops)
        memory = self._training_bytes(shape, training, job, self.text)
        return Task(kind, kind, 1, after, hours, flops, gpus, memory)

    def _training_bytes(self, shape: Shape, training: Training, job: ParallelJob, document: Document) -> Bytes:
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

    def _scores(self) -> Iterator[Task]:
        settings, job = self.preset.reference, self.preset.jobs.scores
        folds = settings.cross_fit
        shown = self.captions + (self.texts if settings.text_only else 0)
        trained = shown * settings.training.epochs * ((folds - 1) if folds else 1)
        quality = (min(settings.quality_captions, self.captions) + self.heldout) * max(folds, 1)
        shape, shards = self.models["reference"], self.preset.corpus.shards
        yield self._text_training("reference", shape, settings.training, trained, "tokens", "llm", read=quality)
        flops = self.captions / shards * costs.flops(shape, self.text, False)
        hours, gpus = self._computed(job, flops)
        bf16 = settings.training.bf16
        memory = costs.inference_bytes(shape, SCORED_ROW, SCORED_ROW, bf16=bf16)
        yield Task("scores", "scores", shards, ("reference", "tokens"), hours, flops, gpus, memory)

    def _trainings(self) -> Iterator[Task]:
        preset = self.preset
        together = preset.seeds if preset.seeds_together else 1
        for cell in self.cells:
            yield self._pretrain(cell, together)
            if preset.tune:
                yield self._tune(cell, together)
            if preset.benchmarks:
                stage = "tune" if preset.tune else "pretrain"
                names, pictures = list(preset.benchmarks), preset.evaluation.pictures
                yield self._predict(
                    "predict", cell, f"{stage} {cell.name}", names, pictures, preset.seeds // together, together
                )
            if cell.kept and self.on_the_way:
                count = preset.seeds * len(cell.kept)
                yield self._predict("predict_step", cell, f"pretrain {cell.name}", self.on_the_way, (True,), count, 1)

    @property
    def on_the_way(self) -> list[str]:
        """Benchmarks that checkpoints which are kept on the way answer, too, with pictures alone."""
        benchmarks = self.preset.benchmarks.items()
        return [name for name, entry in benchmarks if entry.answer != "caption" and not self.preset.tune]

    def _pretrain(self, cell: Cell, together: int) -> Task:
        preset, shape = self.preset, self.models[cell.arch]
        job, training = preset.jobs.pretrain, preset.pretraining(cell.arch)
        needs = REGISTRY[preset.objectives[cell.objective].kind].needs_scores
        after = ["tokens", "llm"] + ["vision"] * (cell.arch == "hlvlm") + ["scores"] * needs
        trained = cell.captions * training.epochs * cell.share
        flops = trained * costs.flops(shape, cell.document, True, job.gradient_checkpointing)
        heldout = min(preset.evaluation.loss_captions, self.heldout)
        measured = max(preset.evaluation.trajectory_points, 1) * heldout
        flops += measured * (costs.flops(shape, cell.document, False) + costs.flops(shape, self.text, False))
        hours, gpus = self._computed(job, flops * together)
        memory = self._training_bytes(shape, training, job, cell.document)
        return Task(
            "pretrain", f"pretrain {cell.name}", preset.seeds // together, tuple(after), hours, flops * together, gpus,
            memory,
        )  # fmt: skip

    def _tune(self, cell: Cell, together: int) -> Task:
        preset, shape = self.preset, self.models[cell.arch]
        assert preset.tune is not None
        job, training = preset.jobs.tune, preset.tune.training
        said = Document(labels=150, prompt=100) if preset.tune.conversations else Document(labels=5, prompt=30)
        document = self.shown(cell.arch, said)
        asked = preset.tune.questions * training.epochs * together
        flops = asked * costs.flops(shape, document, True, job.gradient_checkpointing)
        hours, gpus = self._computed(job, flops)
        memory = self._training_bytes(shape, training, job, document)
        name = f"tune {cell.name}"
        return Task(
            "tune", name, preset.seeds // together, (f"pretrain {cell.name}", "questions"), hours, flops, gpus, memory
        )

    def rows(self, benchmark: str) -> int:
        """Questions of a benchmark."""
        if is_official(benchmark, self.preset) and benchmark in OFFICIAL_ROWS:
            return OFFICIAL_ROWS[benchmark]
        return self.preset.benchmarks[benchmark].items

    def _predict(
        self,
        rule: str,
        cell: Cell,
        before: str,
        names: list[str],
        pictures: tuple[bool, ...],
        count: int,
        together: int,
    ) -> Task:
        """Answers to benchmarks, with pictures and perhaps without; `together` checkpoints one after the other."""
        preset, shape, settings = self.preset, self.models[cell.arch], self.preset.evaluation
        blind = Document(labels=1, prompt=self.given.prompt_tokens - 1)
        # A token of an answer passes through all layers and the head.
        token = 2 * shape.decoder.weights + 2 * shape.vocabulary * shape.decoder.width
        flops = steps = 0.0
        for name in names:
            caption = preset.benchmarks[name].answer == "caption"
            longest = settings.max_caption_tokens if caption else settings.max_new_tokens
            for shown in pictures:
                asked = self.shown(cell.arch, blind) if shown else blind
                flops += self.rows(name) * (costs.flops(shape, asked, False) + longest * token)
                steps += math.ceil(self.rows(name) / settings.batch_size) * longest
        hours, gpus = self._computed(preset.jobs.predict, flops * together)
        if gpus:
            hours += together * costs.decoding_seconds(
                shape, steps, self.given.gpu_bandwidth_tb * 1e12, self.given.decode_ms / 1000
            ) / 3600  # fmt: skip
        asked = self.shown(cell.arch, blind)
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

    def _results(self) -> Iterator[Task]:
        preset = self.preset
        captioned = [name for name, entry in preset.benchmarks.items() if entry.answer == "caption"]
        others = len(preset.benchmarks) - len(captioned)
        answered = [f"predict {cell.name}" for cell in self.cells] if preset.benchmarks else []
        answered += [f"predict_step {cell.name}" for cell in self.cells if cell.kept and self.on_the_way]
        before = [f"pretrain {cell.name}" for cell in self.cells]
        if others:
            yield self._small(
                "score", "score", others * (1 if preset.seeds_together else len(preset.runs())), *answered
            )
            before.append("score")
            if not preset.seeds_together:
                yield self._small("score", "score_degenerate", others, "prompts")
        if captioned:
            yield self._small("score", "score_captions", len(captioned), *answered)
            before.append("score_captions")
        yield self._small("results", "metrics", 1, *before)
        yield self._small("results", "sources", 1)
        yield self._small("results", "words", 1, "scores")
        yield self._small("results", "fits", 1, "metrics")
        yield self._small("results", "tables", 1, "fits", "words", "sources")
        yield self._small("results", "plots", 1, "fits", "words")
        yield self._small("results", "report", 1, "tables", "plots")

    @property
    def checkpoints(self) -> int:
        """Checkpoints that answer benchmarks."""
        return self.preset.seeds * sum(1 + len(cell.kept) for cell in self.cells)

    @cached_property
    def disk(self) -> list[tuple[str, float, str]]:
        """Files by what they are: bytes, and how they come about."""
        preset, given = self.preset, self.given
        seeds, pictures = preset.seeds, (self.captions + self.heldout) * given.picture_kb * 1000
        size = 2 if preset.pretrain.bf16 else 4
        reference = self.models["reference"]
        tokens = (self.captions + self.heldout) * given.caption_tokens
        finals = sum(size * self.models[cell.arch].parameters for cell in self.cells) * seeds
        stages = len(preset.stages)
        kept = sum(size * self.models[cell.arch].parameters * len(cell.kept) for cell in self.cells) * seeds
        private = {
            arch: KEPT * (4 * shape.parameters + (PRIVATE - 4) * shape.trainable) for arch, shape in self.models.items()
        }
        on_the_way = max((size * self.models[cell.arch].parameters * len(cell.kept) for cell in self.cells), default=0)
        rows = sum(map(self.rows, preset.benchmarks))
        finals_asked = len(preset.runs()) * len(preset.evaluation.pictures)
        answers = rows * (finals_asked + (self.checkpoints - len(preset.runs()) if self.on_the_way else 0))
        found = [
            ("corpus", pictures, f"{given.picture_kb:g} kB a picture"),
            ("tokens", 8 * tokens + 40 * self.captions, "8 bytes a token, 40 a caption"),
            ("scores", 8 * tokens + 40 * self.captions, "8 bytes a token, 40 a caption"),
            ("reference", size * reference.parameters * max(preset.reference.cross_fit, 1), f"{size} bytes a weight"),
            ("runs: last checkpoints", finals * stages, f"{size} bytes a weight"),
            ("runs: kept steps", kept, f"{size} bytes a weight"),
            (
                "private, of each training under way",
                max(private.values()) + on_the_way,
                f"the last {KEPT}: weights and Adam in float32; kept steps; gone when it is done",
            ),
            ("predictions", 400 * answers, "400 bytes an answer"),
        ]
        for name, count in self.fetched.items():
            how = "each file goes when its shard is prepared" if name == "files" else "as published"
            found.insert(0, (f"downloads: {name}", count, how))
        if not isinstance(preset.backbones.llm, LLM):
            found.append(("base LLM", 2 * reference.parameters, "2 bytes a weight"))
        return [entry for entry in found if entry[1]]
