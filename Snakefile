"""PRIOR, rebuilt: a preset goes in, every table and figure comes out."""

import difflib


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/answers.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/backbones.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/tune.smk"


# A benchmark that is to be fetched is not made here, too.
for path in sorted(Path(workflow.basedir, "workflow/rules/benchmarks").glob("*.smk")):
    if path.stem.lower() not in [name.lower() for name in FETCHED]:

        include: str(path)


# A benchmark is what some rule makes, so that a user's own needs nothing but a file of rules beside ours.
for name in BENCHMARKS:
    makers = [rule.name for rule in workflow.rules if rule.is_producer(str(R / f"benchmarks/{name}.tsv"))]
    if len(makers) > 1:
        print(f"error: benchmarks.{name}: made by {' and by '.join(makers)}; keep one of these rules", file=sys.stderr)
        sys.exit(2)
    if not makers:
        made = [Path(path) for rule in workflow.rules for path in rule.output if "/benchmarks/" in str(path)]
        known = [path.stem for path in made if path.suffix == ".tsv" and "{" not in path.stem]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known benchmarks: {', '.join(known)}"
        print(f"error: preset '{preset.name}': benchmarks.{name}: no rule makes it; {hint}", file=sys.stderr)
        sys.exit(2)


include: "workflow/rules/predict.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/gather.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        R / "report.html",
        R / "tokens/train.json",
        rules.outcomes.output,
        rules.claims.output,


rule figures:
    input:
        R / "report.html",
        rules.outcomes.output,
        rules.claims.output,


onstart:
    refuse_beside_orphans(workflow)
    if STORED == R:
        write_batches()


onsuccess:
    for note in told(sorted(Path(R, "logs/corpus").rglob("*.log")), "note: "):
        print(note, file=sys.stderr)


# The log of Snakemake holds the logs of failed jobs. A job that met a user's mistake said so in its own one line.
onerror:
    if mistakes := told(log, "error: "):
        print(*mistakes, sep="\n", file=sys.stderr)
        sys.exit(2)
