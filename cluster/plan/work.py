"""How much a preset has to do: its captions, models, runs, questions and downloads, under some assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from cluster.plan import costs
from cluster.plan.assumptions import Assumptions
from cluster.plan.costs import Document
from cluster.plan.shapes import Shape, Stack, lvlm_shape, reference_shape, stack_shape, vision_config
from eval.benchmarks import is_official
from prior.config import (
    FolderCorpus,
    HubModel,
    Objective,
    Preset,
    ScenesCorpus,
    Training,
    WebDatasetCorpus,
    parse_tokens,
)
from prior.config.patterns import expand
from prior.errors import UserError
from prior.hub import is_local
from prior.models.hlvlm import patch_count
from prior.models.ulvlm import patch_grid, picture_positions

# Rows of VLMEvalKit's files.
OFFICIAL_ROWS = {"MME": 2374, "POPE": 5127, "MMBench_DEV_EN": 4329, "MMStar": 1500, "SEEDBench_IMG": 14232}


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
    """A preset under some assumptions."""

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
            "have been read; give --assume captions=…"
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

    @cached_property
    def tower(self) -> Stack:
        """Layers of the vision tower."""
        return stack_shape(vision_config(self.preset))

    @property
    def text(self) -> Document:
        """A caption without its picture."""
        return Document(labels=self.given.caption_tokens, spread=self.given.caption_tokens * self.given.caption_spread)

    def shown(self, arch: str, document: Document) -> Document:
        """A document with a picture as an architecture reads it."""
        if arch == "hlvlm":
            count = patch_count(vision_config(self.preset))
            return replace(document, picture=count, patches=count)
        settings = self.preset.architectures.ulvlm
        assert settings is not None
        corpus = self.preset.corpus
        size = (corpus.image_size,) * 2 if isinstance(corpus, ScenesCorpus) else self.given.picture
        rows, columns = patch_grid(*size, settings.patch_size, settings.max_side)
        return replace(document, picture=picture_positions(rows, columns), patches=rows * columns)

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

    @property
    def official(self) -> list[str]:
        """Benchmarks that are fetched."""
        return [name for name in self.preset.benchmarks if is_official(name, self.preset)]

    def rows(self, benchmark: str) -> int:
        """Questions of a benchmark."""
        if is_official(benchmark, self.preset) and benchmark in OFFICIAL_ROWS:
            return OFFICIAL_ROWS[benchmark]
        return self.preset.benchmarks[benchmark].items

    @property
    def checkpoints(self) -> int:
        """Checkpoints that answer benchmarks."""
        return self.preset.seeds * sum(1 + len(cell.kept) for cell in self.cells)

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
