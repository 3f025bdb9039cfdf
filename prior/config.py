"""The preset of an experiment: every setting, its default value and its permitted range.

A preset is one YAML file in ``workflow/presets``. This module is the only place where a default lives; everything else
receives the resolved values. A preset may name another one under ``extends`` and override single fields of it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prior.errors import UserError

PRESETS = Path(__file__).resolve().parent.parent / "workflow" / "presets"


def parse_tokens(text: str | int) -> int:
    """Read a token count such as ``40k``, ``1.5M`` or ``7000``.

    Raises
    ------
    ValueError
        If the text is not a positive number with an optional ``k``, ``M`` or ``B``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", str(text))
    count = int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else 0
    if count <= 0:
        raise ValueError(f"'{text}' is not a number of tokens; write it as 40k, 1.5M or 7000")
    return count


def _scale(value: Any) -> str:
    parse_tokens(value)
    return str(value)


def _expand(value: Any) -> Any:
    """Replace environment variables in a path; an unset one is the user's to set."""
    if not isinstance(value, str):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if unset := re.search(r"\$\{?(\w+)\}?", expanded):
        raise ValueError(f"the environment variable {unset[1]} is not set; export it as the path of your folder")
    return expanded


Scale = Annotated[str, BeforeValidator(_scale)]
FolderPath = Annotated[str, BeforeValidator(_expand)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScenesCorpus(Settings):
    """A generated world whose captions say which of their words the picture decides."""

    kind: Literal["scenes"] = "scenes"
    train: Positive = 12_000
    val: Positive = 500
    text_only: Positive = 30_000
    image_size: Positive = 48
    seed: Count = 0


class FolderCorpus(Settings):
    """A folder of pictures with a CSV file of ``image,caption`` rows."""

    kind: Literal["folder"] = "folder"
    folder: FolderPath
    captions: str = "captions.csv"
    images: str = "images"
    text_only: str | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_bad_fraction: Fraction = 0.0
    max_captions: Positive | None = None


Corpus = Annotated[ScenesCorpus | FolderCorpus, Field(discriminator="kind")]


class Training(Settings):
    """One run of the training loop. A row is one packed micro-batch; a step sums the gradients of `rows_per_step`."""

    learning_rate: Rate = 2e-3
    min_lr_ratio: Fraction = 0.1
    warmup_ratio: Fraction = 0.05
    weight_decay: Rate = 0.01
    max_grad_norm: Rate = 1.0
    row_tokens: Positive = 1024
    rows_per_step: Positive = 1
    epochs: Annotated[float, Field(gt=0)] = 1.0
    save_steps: Count = 0
    bf16: bool = False
    threads: Positive = 1


class ScratchTokenizer(Settings):
    """A byte-level BPE tokenizer trained on the captions and the text-only split."""

    vocab_size: Annotated[int, Field(ge=300)] = 1024


class ScratchLLM(Settings):
    """A Llama-architecture causal LM pre-trained on the text-only split."""

    hidden_size: Positive = 64
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 192
    max_positions: Positive = 512
    training: Training = Training()
    seed: Count = 0


class ScratchVision(Settings):
    """A CLIP trained contrastively on the training pictures, of which the vision tower is kept."""

    hidden_size: Positive = 64
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 192
    image_size: Positive = 48
    patch_size: Positive = 16
    batch_size: Positive = 128
    epochs: Annotated[float, Field(gt=0)] = 4.0
    learning_rate: Rate = 1e-3
    threads: Positive = 1
    seed: Count = 0


class Tokenizer(Settings):
    scratch: ScratchTokenizer = ScratchTokenizer()


class LLM(Settings):
    scratch: ScratchLLM = ScratchLLM()

    @property
    def threads(self) -> int:
        return self.scratch.training.threads


class Vision(Settings):
    scratch: ScratchVision = ScratchVision()

    @property
    def threads(self) -> int:
        return self.scratch.threads


class Backbones(Settings):
    """Each backbone is a hub id, a local folder, or ``scratch: {…}``."""

    llm: FolderPath | LLM = LLM()
    vision: FolderPath | Vision = Vision()


class Reference(Settings):
    """The text-only reference LLM: the base LLM trained on the captions without the pictures.

    With `text_only` it also learns from the corpus's captions that have no picture.
    """

    training: Training = Training(learning_rate=1e-3)
    cross_fit: Annotated[int, Field(ge=0)] = 0
    text_only: bool = False
    seed: Count = 0

    @model_validator(mode="after")
    def _folds(self) -> Reference:
        if self.cross_fit == 1:
            raise ValueError("cross_fit needs at least 2 folds, or 0 for none")
        return self


class HLVLM(Settings):
    """A vision tower joined to an LLM by a two-layer MLP (LLaVA-1.5)."""

    vision_feature_layer: int = -2
    trainable: tuple[Literal["projector", "llm", "vision"], ...] = ("projector", "llm")


class ULVLM(Settings):
    """One causal LM that reads linearly embedded patches (SOLO)."""

    patch_size: Positive = 16
    max_side: Positive = 48
    trainable: tuple[Literal["projector", "llm"], ...] = ("projector", "llm")


class Architectures(Settings):
    hlvlm: HLVLM | None = HLVLM()
    ulvlm: ULVLM | None = ULVLM()

    def names(self) -> list[str]:
        return [name for name in ("hlvlm", "ulvlm") if getattr(self, name) is not None]


class Objective(Settings):
    """An entry of the registry in `prior.weighting`, with the values of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Tune(Settings):
    """Instruction tuning on question–answer pairs about training pictures, the same for every run."""

    questions: Positive = 6000
    training: Training = Training(learning_rate=1e-3)
    seed: Count = 0


class Benchmark(Settings):
    """What one benchmark is made of; `items` counts questions (MMBench: before rotation)."""

    items: Positive = 200
    seed: Count = 0
    answer: Literal["generate", "likelihood"] = "generate"


class Evaluation(Settings):
    batch_size: Positive = 64
    max_new_tokens: Positive = 12
    no_picture: bool = True
    loss_captions: Positive = 500
    trajectory_points: Count = 0
    threads: Positive = 1


class Statistics(Settings):
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Positive = 2000
    min_scales: Annotated[int, Field(ge=3)] = 3
    seed: Count = 0


class Preset(Settings):
    """A whole experiment."""

    name: Name
    corpus: Corpus = ScenesCorpus()
    tokenizer: FolderPath | Tokenizer = Tokenizer()
    backbones: Backbones = Backbones()
    reference: Reference = Reference()
    architectures: Architectures = Architectures()
    objectives: dict[Name, Objective] = {"ntp": Objective(kind="ntp"), "prior": Objective(kind="prior", alpha=1.0)}
    scales: Annotated[list[Scale], Field(min_length=1)] = ["40k", "120k", "400k"]
    seeds: Positive = 3
    # Small runs share one process per architecture, objective and scale: starting one takes longer than training.
    seeds_together: bool = False
    pretrain: Training = Training()
    tune: Tune | None = Tune()
    benchmarks: dict[Name, Benchmark] = {}
    evaluation: Evaluation = Evaluation()
    statistics: Statistics = Statistics()

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        sizes = [parse_tokens(scale) for scale in self.scales]
        if sizes != sorted(set(sizes)):
            raise ValueError("scales: list them once each, smallest first")
        if len(sizes) < self.statistics.min_scales:
            raise ValueError(
                f"scales: {len(sizes)} given, but a power-law fit needs at least {self.statistics.min_scales}; "
                "add scales"
            )
        if "ntp" not in self.objectives:
            raise ValueError("objectives: 'ntp' is missing; it is what every other objective is compared with")
        if not self.architectures.names():
            raise ValueError("architectures: all are switched off; keep hlvlm or ulvlm")
        generated = [name for name, entry in self.benchmarks.items() if entry.answer == "generate"]
        if generated and self.tune is None:
            raise ValueError(f"tune: null, but {', '.join(generated)} needs a model that was taught to answer")
        return self

    def runs(self) -> list[str]:
        """Every run as ``{arch}/{objective}/{scale}/seed{k}``."""
        return [
            f"{arch}/{objective}/{scale}/seed{seed}"
            for arch in self.architectures.names()
            for objective in self.objectives
            for scale in self.scales
            for seed in range(self.seeds)
        ]

    @property
    def final_stage(self) -> str:
        """The stage whose checkpoints are evaluated on benchmarks."""
        return "tuned" if self.tune else "pretrain"


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


def load_preset(name: str) -> Preset:
    """Load and validate a preset by its name in ``workflow/presets`` or by the path of a YAML file.

    Raises
    ------
    UserError
        If the preset does not exist or breaks the schema; the message names the nearest valid key or name.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    merged = _read(path)
    merged["name"] = path.stem
    try:
        return Preset.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"preset '{path.stem}': " + "; ".join(_explain(item) for item in error.errors()[:3])) from None


def digest(value: Any) -> str:
    """A canonical JSON string of settings: what a Snakemake rule declares so that a changed value reruns it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, default=lambda item: item.model_dump(mode="json"))


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a preset file laid over the preset that it extends."""
    if not path.is_file():
        known = sorted(entry.stem for entry in PRESETS.glob("*.yaml"))
        nearest = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known presets: {', '.join(known)}"
        raise UserError(f"preset '{path.stem}': there is no file {_short(path)}; {hint}")
    if path.resolve() in seen:
        raise UserError(f"preset '{path.stem}': 'extends' leads back to itself; name another preset there")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"preset '{path.stem}': {_short(path)}{line} is not valid YAML; mend its indentation") from None
    if not isinstance(content, dict):
        raise UserError(f"preset '{path.stem}': {_short(path)} holds no settings; write `key: value` lines")
    base = content.pop("extends", None)
    if base is None:
        return content
    parent = path.parent / base if str(base).endswith((".yaml", ".yml")) else PRESETS / f"{base}.yaml"
    return _overlay(_read(parent, (*seen, path.resolve())), content)


# Tables whose entries are named by the user: an overriding preset replaces them whole, so that it can also drop one.
_REPLACED = {"objectives", "benchmarks"}


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        same_kind = isinstance(value, dict) and isinstance(base.get(key), dict)
        if same_kind and key not in _REPLACED and value.get("kind", base[key].get("kind")) == base[key].get("kind"):
            merged[key] = _overlay(base[key], value)
        else:
            merged[key] = value
    return merged


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _explain(item: Any) -> str:
    """One pydantic complaint as a phrase: where, what, remedy."""
    place = [str(part) for part in item["loc"] if part not in ("scenes", "folder", "LLM", "Vision", "Tokenizer")]
    where = ".".join(part for part in place if not part.startswith("function-"))
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(place[-1], sorted(_known_keys(Preset)), n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else "; remove it"
        return f"'{where}' is not a setting{hint}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where + ': ' if where else ''}{message}{shown}"


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Every key that occurs anywhere in a preset: candidates for "did you mean"."""
    keys: set[str] = set()
    stack: list[Any] = [model]
    while stack:
        annotation = stack.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= set(annotation.model_fields)
            stack += [field.annotation for field in annotation.model_fields.values()]
        else:
            stack += list(getattr(annotation, "__args__", ()))
    return keys
