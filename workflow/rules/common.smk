import hashlib
import os
import shlex
import sys
from functools import cache
from pathlib import Path

from eval.benchmarks import check_benchmarks
from prior.config import FolderCorpus, digest
from prior.errors import UserError
from prior.presets import load_preset
from prior.weighting import REGISTRY, check_objective


def corpus_paths(corpus):
    """Where a folder corpus lies, by its settings; a generated corpus lies nowhere."""
    if not isinstance(corpus, FolderCorpus):
        return {}
    folder = Path(corpus.folder)
    names = {"folder": ".", "captions": corpus.captions, "images": corpus.images, "text_only": corpus.text_only}
    return {name: folder / path for name, path in names.items() if path is not None}


try:
    PRESET = str(config.get("preset", "scenes"))
    preset = load_preset(PRESET)
    for _name, _entry in preset.objectives.items():
        check_objective(_name, _entry.kind, _entry.parameters())
    check_benchmarks(preset)
    for _name, _path in corpus_paths(preset.corpus).items():
        if not _path.exists():
            raise UserError(f"corpus.{_name}: there is no '{_path}'; name the right one in preset '{preset.name}'")
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
# The preset is a variable and no parameter, so that one that was moved does not redo anything.
shell.prefix(
    f"set -euo pipefail; export PATH={Path(sys.prefix, 'bin')}:$PATH TOKENIZERS_PARALLELISM=false "
    f"PRESET={shlex.quote(PRESET)}; "
)


wildcard_constraints:
    arch="[a-z]+",
    objective="[^/]+",
    scale="[^/]+",
    seed="[0-9]+",


# The seeds of one job: all of them, or the wildcard that makes each a job of its own.
SEEDS = range(preset.seeds) if preset.seeds_together else ["{seed}"]
CELL = "{arch}/{objective}/{scale}" if preset.seeds_together else "{arch}/{objective}/{scale}/seed{seed}"


def corpus_settings(*splits):
    """The settings of the corpus that some of its splits depend on, without those of the other splits."""
    return preset.corpus.model_dump(mode="json", exclude={"train", "val", "text_only"} - set(splits))


def captions_files(wildcards):
    """The files that a split of a folder corpus is read from, beside its pictures."""
    paths = corpus_paths(preset.corpus)
    return [paths[name] for name in ("captions", wildcards.split) if name in paths]


@cache
def pictures_state():
    """SHA-256 over names, sizes and times of a folder corpus's pictures: as inputs they would be thousands."""
    state = hashlib.sha256()
    for folder, folders, names in os.walk(corpus_paths(preset.corpus).get("images", ""), followlinks=True):
        folders.sort()
        for path in (os.path.join(folder, name) for name in sorted(names)):
            if os.path.exists(path):
                status = os.stat(path)
                state.update(f"{path}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def told(paths, mark):
    """What jobs tell the user: the lines of some logs that begin with `mark`, each once."""
    lines = [line for path in paths for line in Path(path).read_text(errors="replace").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(mark)))


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
