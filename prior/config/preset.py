"""A preset as a whole, what it runs, and how a run is called."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prior.config.corpora import Corpus, ScenesCorpus, WebDatasetCorpus
from prior.config.fields import (
    Count,
    FolderPath,
    Fraction,
    Name,
    Positive,
    Rate,
    Scale,
    Settings,
    Sourced,
    parse_tokens,
)
from prior.config.jobs import Jobs
from prior.config.models import LLM, Architectures, Backbones, Reference, Tokenizer, Training, Vision
from prior.errors import UserError


class Objective(Settings):
    """An entry of the registry in `prior.weighting`, which knows its kinds, with the values of its parameters.

    An ablation may keep to some `scales`, and end after so many `steps` of a training whose schedule is the same.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Rate]
    kind: str
    scales: list[Scale] | None = None
    steps: Positive | None = None

    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Trajectory(Settings):
    """Checkpoints that are kept on the way at the largest scale, to answer benchmarks that are asked before tuning."""

    every: Positive
    until: Positive

    def steps(self) -> range:
        return range(self.every, self.until + 1, self.every)


class Conversations(Settings):
    """Conversations about pictures in LLaVA's JSON format, with the folder in which their pictures lie."""

    file: FolderPath
    images: FolderPath
    max_bad_fraction: Fraction = 0.0


class Tune(Settings):
    """Instruction tuning, the same for every run: on questions about training pictures, or on conversations."""

    questions: Positive = 6000
    conversations: Conversations | None = None
    training: Training = Training(learning_rate=1e-3)
    seed: Count = 0


class Benchmark(Settings):
    """One benchmark: where its questions come from, and how a model answers them.

    Attributes
    ----------
    source
        ``official`` is the file that VLMEvalKit names; left out, it is made by its rule, or fetched if none makes it.
    items, seed
        Of those made here: how many questions (MMBench: before rotation, CHAIR: pictures), and which.
    answer
        ``generate`` a reply; choose an option by ``likelihood``; or ``caption`` the picture, before any tuning.
    stage
        ``pretrain`` asks before any tuning, which choosing by likelihood allows; left out, the last stage is asked.
    objects, synonyms
        CHAIR on a folder of pictures: COCO's instances JSON and its table of object names, both in that folder.
    """

    source: Literal["generated", "official"] | None = None
    items: Positive = 200
    seed: Count = 0
    answer: Literal["generate", "likelihood", "caption"] = "generate"
    stage: Literal["pretrain"] | None = None
    objects: str | None = None
    synonyms: str | None = None


class Evaluation(Settings):
    """How checkpoints are measured; the scores of words are shown for the first `word_captions`."""

    word_captions: Positive = 5000
    batch_size: Positive = 64
    max_new_tokens: Positive = 12
    max_caption_tokens: Positive = 48
    no_picture: bool = True
    loss_captions: Positive = 500
    trajectory_points: Count = 0
    threads: Positive = 1

    def asking(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        return self.model_dump(mode="json", exclude={"loss_captions", "trajectory_points", "word_captions"})

    @property
    def pictures(self) -> tuple[bool, ...]:
        """Whether benchmarks are asked with their pictures, and then without."""
        return (True, False) if self.no_picture else (True,)


class Statistics(Settings):
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Positive = 2000
    seed: Count = 0


# More tokens than a generated caption has under any tokenizer: a scale beyond this cannot be reached.
LONGEST_CAPTION = 128


class Preset(Settings):
    """A whole experiment."""

    name: Name
    corpus: Corpus = ScenesCorpus()
    tokenizer: Sourced[Tokenizer] = Tokenizer()
    backbones: Backbones = Backbones()
    reference: Reference = Reference()
    architectures: Architectures = Architectures()
    objectives: dict[Name, Objective] = {"ntp": Objective(kind="ntp"), "prior": Objective(kind="prior", alpha=1.0)}
    scales: Annotated[list[Scale], Field(min_length=1)] = ["40k", "120k", "400k"]
    seeds: Positive = 3
    # Small runs share one process per architecture, objective and scale: starting one takes longer than training.
    seeds_together: bool = False
    pretrain: Training = Training()
    trajectory: Trajectory | None = None
    tune: Tune | None = Tune()
    benchmarks: dict[Name, Benchmark] = {}
    # Where official benchmarks lie if they are not to be downloaded: a folder of <name>.tsv.
    benchmarks_dir: FolderPath | None = None
    evaluation: Evaluation = Evaluation()
    jobs: Jobs = Jobs()
    statistics: Statistics = Statistics()

    @model_validator(mode="after")
    def _scales(self) -> Preset:
        sizes = [parse_tokens(scale) for scale in self.scales]
        if sizes != sorted(set(sizes)):
            raise ValueError("scales: list them once each, smallest first")
        if isinstance(self.corpus, ScenesCorpus) and sizes[-1] > self.corpus.train * LONGEST_CAPTION:
            raise ValueError(
                f"scales: {self.scales[-1]} caption tokens are more than {self.corpus.train} captions can hold; "
                "raise corpus.train or lower the scale"
            )
        return self

    @model_validator(mode="after")
    def _objectives(self) -> Preset:
        if "ntp" not in self.objectives:
            raise ValueError("objectives: 'ntp' is missing; it is what every other objective is compared with")
        if (kind := self.objectives["ntp"].kind) != "ntp":
            raise ValueError(
                f"objectives.ntp.kind: should be ntp, with which every other objective is compared (got '{kind}'); "
                "give this objective another name"
            )
        for name, objective in self.objectives.items():
            if unknown := [scale for scale in objective.scales or [] if scale not in self.scales]:
                raise ValueError(f"objectives.{name}.scales: {unknown[0]} is none of the scales {self.scales}; use one")
        if self.objectives["ntp"].scales or self.objectives["ntp"].steps:
            raise ValueError("objectives.ntp: every other objective is compared with it; remove its scales and steps")
        return self

    @model_validator(mode="after")
    def _models(self) -> Preset:
        if not self.architectures.names():
            raise ValueError("architectures: all are switched off; keep hlvlm or ulvlm")
        if (source := self.backbones.hub_llm) and isinstance(self.tokenizer, Tokenizer):
            raise ValueError(
                f"tokenizer: an LLM that is fetched knows only its own tokens; write `tokenizer: {source}`"
            )
        vision, hlvlm = self.backbones.vision, self.architectures.hlvlm
        if isinstance(vision, Vision) and hlvlm is not None:
            layers = vision.scratch.layers
            # As in transformers, the embeddings count as layer 0.
            if not -layers - 1 <= hlvlm.vision_feature_layer <= layers:
                raise ValueError(
                    f"architectures.hlvlm.vision_feature_layer: the vision tower has {layers} layers; "
                    f"choose from {-layers - 1} to {layers} (got {hlvlm.vision_feature_layer})"
                )
        return self

    @model_validator(mode="after")
    def _texts(self) -> Preset:
        if not isinstance(self.corpus, WebDatasetCorpus):
            return self
        scratch = {
            "tokenizer": isinstance(self.tokenizer, Tokenizer),
            "backbones.llm": isinstance(self.backbones.llm, LLM),
        }
        for name in (name for name, made_here in scratch.items() if made_here):
            raise ValueError(f"{name}: a WebDataset has no texts to train it on; name one of a hub or a folder")
        if self.reference.text_only:
            raise ValueError("reference.text_only: a WebDataset has no captions without pictures; write false")
        return self

    @model_validator(mode="after")
    def _answers(self) -> Preset:
        made_here = isinstance(self.corpus, ScenesCorpus)
        if self.tune is not None and self.tune.conversations is None and not made_here:
            raise ValueError(
                "tune: questions are made for `corpus.kind: scenes` only; write `tune: null`, or name conversations"
            )
        for name, entry in self.benchmarks.items():
            if self.tune is not None and entry.stage == "pretrain" and entry.answer == "generate":
                raise ValueError(
                    f"benchmarks.{name}.stage: before tuning no model answers; write `answer: likelihood`, or leave "
                    "`stage` out"
                )
        return self

    def runs(self) -> list[str]:
        """Every run as ``{arch}/{objective}/{scale}/seed{k}``."""
        return [
            f"{arch}/{name}/{scale}/seed{seed}"
            for arch in self.architectures.names()
            for name, objective in self.objectives.items()
            for scale in objective.scales or self.scales
            for seed in range(self.seeds)
        ]

    def trains(self, objective: str, scale: str) -> bool:
        """Whether there are runs of an objective at a scale."""
        entry = self.objectives.get(objective)
        return entry is not None and scale in (entry.scales or self.scales)

    def kept_steps(self, objective: str, scale: str) -> list[int]:
        """After which steps of a pre-training a checkpoint is kept and asked, beside the last one.

        An ablation that keeps to some scales is compared by its last checkpoint and has none on the way, unless it ends
        early, where the others are on the way.
        """
        entry = self.objectives[objective]
        if self.trajectory is None or scale != self.scales[-1] or (entry.scales and entry.steps is None):
            return []
        last = entry.steps
        return [step for step in self.trajectory.steps() if last is None or step < last]

    def pretraining(self, arch: str) -> Training:
        """How an architecture is pre-trained."""
        rows = getattr(self.architectures, arch).rows_per_step
        return self.pretrain.model_copy(update={"rows_per_step": rows}) if rows else self.pretrain

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of every run, in their order."""
        return ("pretrain", "tuned") if self.tune else ("pretrain",)

    @property
    def final_stage(self) -> str:
        """The stage whose checkpoints answer questions."""
        return self.stages[-1]

    @property
    def asked_on_the_way(self) -> list[str]:
        """Benchmarks that checkpoints which are kept on the way answer, too: those without tuning, but captions."""
        if self.trajectory is None:
            return []
        names = [name for name, entry in self.benchmarks.items() if entry.answer != "caption"]
        return [name for name in names if self.asked_stage(name) == "pretrain"]

    @property
    def trainings(self) -> dict[str, list[Training]]:
        """How each kind of job trains that may have several processes (see `prior.config.jobs`)."""
        llm = self.backbones.llm
        found = {
            "reference": [self.reference.training],
            "pretrain": [self.pretraining(arch) for arch in self.architectures.names()],
        }
        if isinstance(llm, LLM):
            found["llm"] = [llm.scratch.training]
        if self.tune:
            found["tune"] = [self.tune.training]
        return found

    def threads(self, kind: str) -> int:
        """Threads of one process of a kind of job (see `prior.config.jobs`)."""
        if kind == "vision":
            return getattr(self.backbones.vision, "threads", 1)
        if kind == "predict":
            return self.evaluation.threads
        trainings = self.trainings.get("reference" if kind == "scores" else kind)
        return trainings[0].threads if trainings else 1

    def cores(self, kind: str) -> int:
        """Cores that a kind of job keeps busy on one machine, its loaders included."""
        job = getattr(self.jobs, kind)
        return (self.threads(kind) + job.loaders) * job.processes_per_node

    def asked_stage(self, benchmark: str) -> str:
        """The stage whose checkpoints answer a benchmark: tuning teaches to answer, and to caption no more."""
        entry = self.benchmarks[benchmark]
        return "pretrain" if entry.answer == "caption" or entry.stage == "pretrain" else self.final_stage


class Run(NamedTuple):
    """What tells one training from another; written ``{arch}/{objective}/{scale}/seed{k}``."""

    arch: str
    objective: str
    scale: str
    seed: int


def parse_run(name: str) -> Run:
    """Read a run's name, such as ``hlvlm/ntp/40k/seed0``.

    Raises
    ------
    UserError
        If it has another form.
    """
    parts = name.split("/")
    if len(parts) != 4 or not re.fullmatch(r"seed\d+", parts[3]):
        raise UserError(f"run '{name}': write it as arch/objective/scale/seed0, for example hlvlm/ntp/40k/seed0")
    arch, objective, scale, seed = parts
    return Run(arch, objective, scale, int(seed.removeprefix("seed")))


def digest(value: Any) -> str:
    """A canonical JSON string of settings: what a Snakemake rule declares so that a changed value reruns it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, default=lambda item: item.model_dump(mode="json"))
