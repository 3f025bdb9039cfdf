# Every benchmark that VLMEvalKit names needs no more than an entry in a preset. Both rules want a network (unless
# `benchmarks_dir` names a folder) and little else: on a cluster they run where Snakemake runs.
localrules:
    official_table,
    benchmark_official,


rule official_table:
    output:
        R / "benchmarks/official.json",
    log:
        R / "logs/benchmarks/official.log",
    priority: 100
    shell:
        '"$KIT" -m eval.vlmevalkit official --out {output} > {log} 2>&1'


rule benchmark_official:
    input:
        table=R / "benchmarks/official.json",
        folder=local_official,
    output:
        R / "benchmarks/{official}.tsv",
    log:
        R / "logs/benchmarks/{official}.log",
    wildcard_constraints:
        official=either(FETCHED),
    priority: 100
    shell:
        'python -m eval official {wildcards.official} --preset "$PRESET" --table {input.table} --out {output} '
        "> {log} 2>&1"
