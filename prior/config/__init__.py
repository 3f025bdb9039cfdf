"""The preset of an experiment: every setting, its default value and its permitted range.

A default lives here and nowhere else; all other code receives the resolved values. How a preset is read from its file
is the matter of `prior.presets`.
"""

from prior.config.corpora import (
    Corpus,
    FolderCorpus,
    ScenesCorpus,
    WebDatasetCorpus,
    shard_names,
)
from prior.config.fields import parse_tokens
from prior.config.jobs import (
    Job,
    Jobs,
    ParallelJob,
    SingleJob,
)
from prior.config.models import (
    HLVLM,
    LLM,
    ULVLM,
    Architectures,
    Backbones,
    HubModel,
    Lora,
    Reference,
    ScratchLLM,
    ScratchTokenizer,
    ScratchVision,
    Tokenizer,
    Training,
    Vision,
)
from prior.config.preset import (
    Benchmark,
    Conversations,
    Evaluation,
    Objective,
    Preset,
    Run,
    Statistics,
    Trajectory,
    Tune,
    digest,
    parse_run,
)

__all__ = [
    "Architectures",
    "Backbones",
    "Benchmark",
    "Conversations",
    "Corpus",
    "Evaluation",
    "FolderCorpus",
    "HLVLM",
    "HubModel",
    "Job",
    "Jobs",
    "LLM",
    "Lora",
    "Objective",
    "ParallelJob",
    "Preset",
    "Reference",
    "Run",
    "ScenesCorpus",
    "ScratchLLM",
    "ScratchTokenizer",
    "ScratchVision",
    "SingleJob",
    "Statistics",
    "Tokenizer",
    "Training",
    "Trajectory",
    "Tune",
    "ULVLM",
    "Vision",
    "WebDatasetCorpus",
    "digest",
    "parse_run",
    "parse_tokens",
    "shard_names",
]
