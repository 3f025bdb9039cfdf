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

# Benchmarks are answered in batches. Those of the first run are one; what is added to it later is another, so that only
# that is answered. Which is which must outlast the run.
_BATCHES = R / "predictions/.batches.json"


def corpus_settings(*splits):
    """The settings of the corpus that some of its splits depend on, without those of the other splits."""
    others = {"train", "val", "text_only"} - set(splits)
    return preset.corpus.model_dump(mode="json", exclude=others | (set() if "train" in splits else {"shards"}))


def shards(pattern):
    """The paths of a pattern for all shards of the training captions."""
    return expand(str(R / pattern), shard=shard_names(preset.corpus, "train"))


# Of the other splits there is one shard.
WHOLE = "0000"


def captions_files(wildcards):
    """The files that a shard is read from, beside the pictures of a folder."""
    if isinstance(preset.corpus, WebDatasetCorpus):
        return [tar_folder() / name for name in tar_files(preset.corpus, wildcards.split, int(wildcards.shard))]
    paths = corpus_paths(preset.corpus)
    return [paths[name] for name in ("corpus.captions", f"corpus.{wildcards.split}") if name in paths]


def tar_folder():
    """Where the tar files of a WebDataset are, or are fetched to."""
    return Path(preset.corpus.source) if is_local(preset.corpus.source) else R / "downloads/files"


def files_option():
    """Where the tar files of a shard are."""
    return f"--files {tar_folder()}" if isinstance(preset.corpus, WebDatasetCorpus) else ""


def hub_source(model):
    """The hub id of what is fetched."""
    if model == "tokenizer":
        return preset.tokenizer
    return preset.backbones.hub_llm if model == "llm" else preset.backbones.hub_vision


def hub_files():
    """The files of a dataset that are fetched from a hub."""
    corpus = preset.corpus
    if not isinstance(corpus, WebDatasetCorpus) or is_local(corpus.source):
        return []
    return [
        *sum((tar_files(corpus, "train", number) for number in range(corpus.shards)), []),
        *tar_files(corpus, "val", 0),
    ]


def from_hub(model):
    """What is fetched of a backbone, as an input; nothing where it is made here or lies in a folder."""
    entry = preset.tokenizer if model == "tokenizer" else getattr(preset.backbones, model)
    source = hub_source(model)
    made_here = isinstance(entry, LLM | Vision | Tokenizer)
    return {} if made_here or is_local(source) else {"hub": R / f"downloads/models/{model}"}


def given(inputs, *names, **folders):
    """Options of the command line for those inputs that a job has; shards are given by their folder."""
    values = {name: inputs[name] for name in names if name in inputs.keys()}
    values |= {name: folder for name, folder in folders.items() if name in inputs.keys()}
    return [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]


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


def captions():
    """The inputs of what reads the captions of both splits, but for their pictures."""
    return {
        "train_tokens": shards("tokens/train/{shard}.arrow"),
        "val_tokens": R / f"tokens/val/{WHOLE}.arrow",
    }


def tokenizer_inputs(wildcards):
    """What a tokenizer is trained on, or where it was fetched to."""
    if not isinstance(preset.tokenizer, Tokenizer):
        return from_hub("tokenizer")
    return {"train": shards("corpus/train/{shard}"), "text_only": R / f"corpus/text_only/{WHOLE}"}


def llm_inputs(wildcards):
    """What the base LLM is trained on, or where it was fetched to."""
    if not isinstance(preset.backbones.llm, LLM):
        return from_hub("llm")
    return {"text_only": R / f"corpus/text_only/{WHOLE}"}


def vision_inputs(wildcards):
    """What the vision tower is trained on, or where it was fetched to."""
    if not isinstance(preset.backbones.vision, Vision):
        return from_hub("vision")
    return {
        "train": shards("corpus/train/{shard}"),
        "tokens": shards("tokens/train/{shard}.arrow"),
        "tokenizer": R / "tokenizer",
    }


def reference_inputs(wildcards):
    """The captions, and those without pictures if the reference LLM learns from them, too."""
    return captions() | ({"text_only": R / f"corpus/text_only/{WHOLE}"} if preset.reference.text_only else {})


def pretrain_inputs(wildcards):
    """A run waits for what its architecture and its objective read, and for nothing else."""
    inputs = captions() | {
        "train": shards("corpus/train/{shard}"),
        "val": R / f"corpus/val/{WHOLE}",
        "tokenizer": R / "tokenizer",
        "llm": R / "backbones/llm",
    }
    if wildcards.arch == "hlvlm":
        inputs["vision"] = R / "backbones/vision"
    if REGISTRY[preset.objectives[wildcards.objective].kind].needs_scores:
        inputs["scores"] = shards("scores/base/{shard}.arrow")
    return inputs


def tune_inputs(wildcards):
    """The pictures that questions are about; conversations come with their own."""
    return {} if preset.tune.conversations else {"corpus": shards("corpus/train/{shard}")}


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


def asked_on_the_way(batch):
    """Those benchmarks of a batch that checkpoints on the way answer, too."""
    return [name for name in batch if name in preset.asked_on_the_way]


def step_predictions(benchmark):
    """The pattern of the prediction file of a checkpoint that was kept on the way."""
    return prediction_file(R / "predictions", "{arch}/{objective}/{scale}/seed{seed}/pretrain/step{step}", benchmark)


def steps_asked(run, benchmark):
    """After which steps checkpoints of a run answer a benchmark, beside the last one."""
    run = parse_run(run)
    return preset.kept_steps(run.objective, run.scale) if asked_on_the_way([benchmark]) else []


def answered(run, benchmark):
    """The prediction files of a run, by its name."""
    keys = parse_run(run)._asdict()
    paths = [str(path).format(**keys) for path in predictions(benchmark)]
    return [
        *paths,
        *(str(step_predictions(benchmark)).format(**keys, step=step) for step in steps_asked(run, benchmark)),
    ]


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
    options += [
        f"--checkpoint {run}/pretrain/step{step}"
        for run in scored(wildcards)
        for step in steps_asked(run, wildcards.benchmark)
    ]
    options += ["--no-picture"] if preset.evaluation.no_picture else []
    options += [f"--degenerate {preset.seeds}"] if preset.seeds_together else []
    return [*options, official_option(wildcards)]


def object_files(wildcards):
    """What tells which objects are in the pictures of a folder corpus; a generated corpus knows."""
    if not isinstance(preset.corpus, FolderCorpus):
        return {}
    entry, folder = preset.benchmarks["CHAIR"], Path(preset.corpus.folder)
    return {"val": R / f"corpus/val/{WHOLE}", "objects": folder / entry.objects, "names": folder / entry.synonyms}


def local_official(wildcards):
    """The file that stands in for a download; without `benchmarks_dir` none."""
    return [f"{preset.benchmarks_dir}/{wildcards.official}.tsv"] if preset.benchmarks_dir else []


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


def measures():
    """What the scoring jobs measure, without the endings of their files."""
    if preset.seeds_together:
        return BENCHMARKS
    parts = [f"{name}/{part}" for name in BENCHMARKS if name not in CAPTIONED for part in (*RUNS, "baseline")]
    return [*parts, *CAPTIONED]


prepare(workflow, lambda logs: told(logs, "error: "))
