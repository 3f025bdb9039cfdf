import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

from cluster.manners import prepare, refuse_beside_orphans
from cluster.requests import check, request
from cluster.settings import load_cluster
from eval.benchmarks import check_benchmarks, is_official
from eval.checkpoints import prediction_file
from eval.outcomes import OUTCOMES, TABLE_ENDINGS
from eval.stored import FILES, METRICS
from prior.config import LLM, FolderCorpus, Tokenizer, Vision, WebDatasetCorpus, digest, parse_run, shard_names
from prior.corpus.splits import tar_files
from prior.errors import UserError
from prior.files import write_json
from prior.hub import is_local
from prior.presets import load_preset
from prior.weighting import REGISTRY, check_objective


def corpus_paths(corpus):
    """Where a corpus lies, by its settings; one that is generated or fetched lies nowhere."""
    if isinstance(corpus, WebDatasetCorpus) and is_local(corpus.source):
        shards = [("train", number) for number in range(corpus.shards)] + [("val", 0)]
        return {
            f"corpus.{split}": Path(corpus.source, name)
            for split, number in shards
            for name in tar_files(corpus, split, number)
        }
    if not isinstance(corpus, FolderCorpus):
        return {}
    folder = Path(corpus.folder)
    names = {"folder": ".", "captions": corpus.captions, "images": corpus.images, "text_only": corpus.text_only}
    return {f"corpus.{name}": folder / path for name, path in names.items() if path is not None}


def benchmark_paths(preset, fetched, captioned):
    """Where the files lie that a preset's benchmarks are made from."""
    paths = {}
    if preset.benchmarks_dir is not None:
        paths |= {f"benchmarks_dir: {name}": Path(preset.benchmarks_dir, f"{name}.tsv") for name in fetched}
    if isinstance(preset.corpus, FolderCorpus):
        for name in captioned:
            entry, folder = preset.benchmarks[name], Path(preset.corpus.folder)
            paths |= {f"benchmarks.{name}.{key}": folder / getattr(entry, key) for key in ("objects", "synonyms")}
    return paths


try:
    PRESET = str(config.get("preset", "scenes"))
    preset = load_preset(PRESET)
    for _name, _entry in preset.objectives.items():
        check_objective(_name, _entry.kind, _entry.parameters())
    check_benchmarks(preset)
    BENCHMARKS = list(preset.benchmarks)
    FETCHED = [name for name in BENCHMARKS if is_official(name, preset)]
    CAPTIONED = [name for name in BENCHMARKS if preset.benchmarks[name].answer == "caption"]
    CHECKOUT = Path(workflow.basedir)
    CLUSTER = load_cluster(Path(os.environ.get("PRIOR_CLUSTER", CHECKOUT / "workflow/profiles/slurm/cluster.yaml")))
    VLMEVALKIT = Path(config.get("vlmevalkit_python", CHECKOUT / ".venv-vlmevalkit/bin/python"))
    R = Path("results") / preset.name
    # Where the small files are that results are made of: those of another run of the preset need nothing else.
    STORED = Path(config.get("stored", R))
    if STORED == R:
        for _name, _path in {**corpus_paths(preset.corpus), **benchmark_paths(preset, FETCHED, CAPTIONED)}.items():
            if not _path.exists():
                raise UserError(f"{_name}: there is no '{_path}'; name the right one in preset '{preset.name}'")
        check(preset, CLUSTER)
        if BENCHMARKS and not shutil.which(VLMEVALKIT):
            raise UserError(f"there is no '{VLMEVALKIT}', in which VLMEvalKit runs; make it with `make env`")
    elif Path(R, METRICS).exists():
        raise UserError(f"stored: {R} holds a run, whose results those of {STORED} would replace; move one away")
    elif not Path(STORED, METRICS).is_file():
        raise UserError(
            f"stored: there is no {STORED}/{METRICS}; name a folder in which a run of this preset was published"
        )
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

RUNS = preset.runs()
DRAWN = [name for name, heading in OUTCOMES.items() if heading.figure]
PAPER = CHECKOUT / "results/reported"


# Only with `--sdm apptainer`: the system inside which `make` has made the environments.
container: CLUSTER.container or "docker://python:3.11-bookworm"


# Modules and the like are for the nodes of a cluster.
SETUP = "\n".join(["", *CLUSTER.setup, ""]) if CLUSTER.setup and "SLURM_JOB_ID" in os.environ else " "


# Jobs find this environment's programs also where it was not activated. A job's number of threads is part of its
# result: it is fixed by the preset, whatever the machine offers.
# Places are variables and no parameters, so that a preset or a checkout that was moved does not redo anything.
shell.prefix(
    # Such lines may run scripts that ask for variables which are not set.
    f"set -eo pipefail;{SETUP}set -u; export PATH={Path(sys.prefix, 'bin')}:$PATH TOKENIZERS_PARALLELISM=false "
    f"PRESET={shlex.quote(PRESET)} KIT={shlex.quote(str(VLMEVALKIT))} CACHE={shlex.quote(str(CHECKOUT / '.cache'))}; "
)


wildcard_constraints:
    benchmark="[^/]+",
    arch="[a-z]+",
    objective="[^/]+",
    scale="[^/]+",
    seed="[0-9]+",


# The seeds of one job: all of them, or the wildcard that makes each a job of its own.
SEEDS = range(preset.seeds) if preset.seeds_together else ["{seed}"]
CELL = "{arch}/{objective}/{scale}" if preset.seeds_together else "{arch}/{objective}/{scale}/seed{seed}"
# What one scoring job measures.
MEASURE = "{benchmark}" if preset.seeds_together else "{benchmark}/{arch}/{objective}/{scale}/seed{seed}"


def shards(pattern):
    """The paths of a pattern for all shards of the training captions."""
    return expand(str(R / pattern), shard=shard_names(preset.corpus, "train"))


# Of the other splits there is one shard.
WHOLE = "0000"


def given(inputs, *names, **folders):
    """Options of the command line for those inputs that a job has; shards are given by their folder."""
    values = {name: inputs[name] for name in names if name in inputs.keys()}
    values |= {name: folder for name, folder in folders.items() if name in inputs.keys()}
    return [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]


def asks(kind):
    """What jobs of a kind ask a cluster for, and how a training is launched: resources, since these redo nothing."""
    return request(preset, kind, CLUSTER)


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


def either(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def stored_files():
    """What results are made of; of an older run that lacks a file, results say so."""
    return [STORED / name for name in FILES if STORED == R or Path(STORED, name).exists()]


def viewed_runs():
    """The runs whose tokens and answers the viewer shows: the first seed's at the largest scale."""
    objectives = [name for name in ("ntp", "prior") if preset.trains(name, preset.scales[-1])]
    return expand(
        R / "runs/{arch}/{objective}/{scale}/seed0/pretrain",
        arch=preset.architectures.names(),
        objective=objectives,
        scale=preset.scales[-1],
    )


def shown(path, name):
    """A result as Snakemake's report shows it, with its caption."""
    heading = OUTCOMES.get(name)
    kind = "figure" if path.endswith(".png") else "table"
    return report(
        R / path,
        caption=f"../report/{name}.rst",
        category=heading.category if heading else "Claims",
        labels={"result": heading.title if heading else "The paper's claims", "kind": kind},
    )


prepare(workflow, lambda logs: told(logs, "error: "))
