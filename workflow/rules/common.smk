import os
import sys
from pathlib import Path

from prior.config import digest, load_preset
from prior.errors import UserError
from prior.weighting import REGISTRY, check_objective

try:
    PRESET = config.get("preset", "scenes")
    preset = load_preset(PRESET)
    for _name, _entry in preset.objectives.items():
        check_objective(_name, _entry.kind, _entry.parameters())
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

R = Path("results") / preset.name
RUNS = preset.runs()
BENCHMARKS = list(preset.benchmarks)
CHECKOUT = Path(workflow.basedir)
PAPER = CHECKOUT / "results/paper"
VLMEVALKIT = config.get("vlmevalkit_python", CHECKOUT / ".venv-vlmevalkit/bin/python")


# Only with `--sdm apptainer`: the system inside which `make` has made the environments.
container: "docker://python:3.11-bookworm"


# Jobs find this environment's programs also where it was not activated. A job's number of threads is part of its
# result: it is fixed by the preset, whatever the machine offers.
shell.prefix(f"set -euo pipefail; export PATH={Path(sys.prefix, 'bin')}:$PATH TOKENIZERS_PARALLELISM=false; ")


wildcard_constraints:
    arch="[a-z]+",
    objective="[^/]+",
    scale="[^/]+",
    seed="[0-9]+",


# The seeds of one job: all of them, or the wildcard that makes each a job of its own.
SEEDS = range(preset.seeds) if preset.seeds_together else ["{seed}"]
CELL = "{arch}/{objective}/{scale}" if preset.seeds_together else "{arch}/{objective}/{scale}/seed{seed}"


def each_seed(pattern):
    """The paths of a job's seeds."""
    return expand(pattern, seed=SEEDS, allow_missing=True)


def run_options(wildcards):
    """The runs of a job, as options of the command line."""
    seeds = range(preset.seeds) if preset.seeds_together else [wildcards.seed]
    return [f"--run {wildcards.arch}/{wildcards.objective}/{wildcards.scale}/seed{seed}" for seed in seeds]


def largest_first(wildcards):
    """Long jobs first, so that none is left over at the end."""
    return preset.scales.index(wildcards.scale)


def pretrain_inputs(wildcards):
    """A run waits for what its architecture and its objective read, and for nothing else."""
    inputs = {
        "train": R / "corpus/train",
        "val": R / "corpus/val",
        "tokenizer": R / "tokenizer",
        "llm": R / "backbones/llm",
    }
    if wildcards.arch == "hlvlm":
        inputs["vision"] = R / "backbones/vision"
    if REGISTRY[preset.objectives[wildcards.objective].kind].needs_scores:
        inputs["scores"] = R / "scores/base.arrow"
    return inputs


def checkpoints(arch, objective):
    """Every checkpoint of an architecture under an objective, as the scorer's arguments."""
    return [
        f"{arch}/{objective}/{scale}/seed{seed}/{preset.final_stage}/final"
        for scale in preset.scales
        for seed in range(preset.seeds)
    ]
