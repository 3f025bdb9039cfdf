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
from prior.config import FolderCorpus, digest, parse_run
from prior.errors import UserError
from prior.files import write_json
from prior.presets import load_preset
from prior.weighting import REGISTRY, check_objective


def corpus_paths(corpus):
    """Where a folder corpus lies, by its settings; a generated corpus lies nowhere."""
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
    for _name, _path in {**corpus_paths(preset.corpus), **benchmark_paths(preset, FETCHED, CAPTIONED)}.items():
        if not _path.exists():
            raise UserError(f"{_name}: there is no '{_path}'; name the right one in preset '{preset.name}'")
    check(preset, CLUSTER)
    if BENCHMARKS and not shutil.which(VLMEVALKIT):
        raise UserError(f"there is no '{VLMEVALKIT}', in which VLMEvalKit runs; make it with `make env`")
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

R = Path("results") / preset.name
RUNS = preset.runs()
PAPER = CHECKOUT / "results/paper"


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

# Benchmarks are answered in batches. Those of the first run are one; what is added to it later is another, so that only
# that is answered. Which is which must outlast the run.
_BATCHES = R / "predictions/.batches.json"


def corpus_settings(*splits):
    """The settings of the corpus that some of its splits depend on, without those of the other splits."""
    return preset.corpus.model_dump(mode="json", exclude={"train", "val", "text_only"} - set(splits))


def captions_files(wildcards):
    """The files that a split of a folder corpus is read from, beside its pictures."""
    paths = corpus_paths(preset.corpus)
    return [paths[name] for name in ("corpus.captions", f"corpus.{wildcards.split}") if name in paths]


@cache
def pictures_state():
    """SHA-256 over names, sizes and times of a folder corpus's pictures: as inputs they would be thousands."""
    state = hashlib.sha256()
    for folder, folders, names in os.walk(corpus_paths(preset.corpus).get("corpus.images", ""), followlinks=True):
        folders.sort()
        for path in (os.path.join(folder, name) for name in sorted(names)):
            if os.path.exists(path):
                status = os.stat(path)
                state.update(f"{path}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


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


def either(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def read_batches():
    """The batches of benchmarks that were ever answered, and what is new as one more."""
    try:
        recorded = [[name for name in batch if name in BENCHMARKS] for batch in json.loads(_BATCHES.read_text())]
    except (OSError, ValueError, TypeError):
        recorded = []
    if sorted(name for batch in recorded for name in batch) == sorted(BENCHMARKS):
        # Jobs on a cluster read this again while files come and go, and must find what the run began with.
        return [batch for batch in recorded if batch]
    begun = [batch for batch in recorded if any(any(_BATCHES.parent.rglob(f"{name}.tsv")) for name in batch)]
    return [batch for batch in [*begun, [name for name in BENCHMARKS if name not in sum(begun, [])]] if batch]


def write_batches():
    """Called when jobs are about to run, and not by a dry run."""
    write_json(_BATCHES, BATCHES)


BATCHES = read_batches()


def asked_runs(batch):
    """The stages of a job's runs that answer some benchmarks."""
    stages = sorted({preset.asked_stage(name) for name in batch})
    return [path for stage in stages for path in each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}" / stage)]


def predictions(benchmark):
    """The patterns of the prediction files of a benchmark, with its pictures and without."""
    name = f"{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.asked_stage(benchmark)}/final"
    return [prediction_file(R / "predictions", name, benchmark, shown) for shown in preset.evaluation.pictures]


def answered(run, benchmark):
    """The prediction files of a run, by its name."""
    arch, objective, scale, seed = parse_run(run)
    return [str(path).format(arch=arch, objective=objective, scale=scale, seed=seed) for path in predictions(benchmark)]


def scored(wildcards):
    """The runs that a scoring job takes."""
    return RUNS if preset.seeds_together else ["{arch}/{objective}/{scale}/seed{seed}".format(**wildcards)]


def official_option(wildcards):
    """The cells of a file that is not ours are taken as they are."""
    return "--official" if wildcards.benchmark in FETCHED else ""


def score_options(wildcards):
    """What a scoring job takes of a benchmark, as options of the command line."""
    stage = preset.asked_stage(wildcards.benchmark)
    options = [f"--checkpoint {run}/{stage}/final" for run in scored(wildcards)]
    options += ["--no-picture"] if preset.evaluation.no_picture else []
    options += [f"--degenerate {preset.seeds}"] if preset.seeds_together else []
    return [*options, official_option(wildcards)]


def object_files(wildcards):
    """What tells which objects are in the pictures of a folder corpus; a generated corpus knows."""
    if not isinstance(preset.corpus, FolderCorpus):
        return {}
    entry, folder = preset.benchmarks["CHAIR"], Path(preset.corpus.folder)
    return {"val": R / "corpus/val", "objects": folder / entry.objects, "names": folder / entry.synonyms}


def local_official(wildcards):
    """The file that stands in for a download; without `benchmarks_dir` none."""
    return [f"{preset.benchmarks_dir}/{wildcards.official}.tsv"] if preset.benchmarks_dir else []


def measures():
    """What the scoring jobs measure, without the endings of their files."""
    if preset.seeds_together:
        return BENCHMARKS
    parts = [f"{name}/{part}" for name in BENCHMARKS if name not in CAPTIONED for part in (*RUNS, "baseline")]
    return [*parts, *CAPTIONED]


prepare(workflow, lambda logs: told(logs, "error: "))
