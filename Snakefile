"""PRIOR, rebuilt: a preset goes in, every table and figure comes out."""


include: "workflow/rules/common.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/backbones.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/tune.smk"


for path in sorted(Path(workflow.basedir, "workflow/rules/benchmarks").glob("*.smk")):

    include: str(path)


include: "workflow/rules/predict.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        R / "report.html",


rule figures:
    input:
        R / "tables",
        R / "figures",
