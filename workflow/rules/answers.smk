"""Who answers which benchmarks, in which jobs, and where the answers lie."""

# Benchmarks are answered in batches. Those of the first run are one; what is added to it later is another, so that only
# that is answered. Which is which must outlast the run.
_BATCHES = R / "predictions/.batches.json"


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


def measures():
    """What the scoring jobs measure, without the endings of their files."""
    if preset.seeds_together:
        return BENCHMARKS
    parts = [f"{name}/{part}" for name in BENCHMARKS if name not in CAPTIONED for part in (*RUNS, "baseline")]
    return [*parts, *CAPTIONED]
