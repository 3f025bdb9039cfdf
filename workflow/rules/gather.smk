rule metrics:
    input:
        measures=expand(R / "measures/{part}.{ending}", part=measures(), ending=["csv", "parquet"]),
        runs=expand(R / "runs/{run}/pretrain", run=RUNS),
    output:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
    log:
        R / "logs/metrics.log",
    resources:
        **asks("small"),
    params:
        results=R,
        measures=[f"--measure {part}" for part in measures()],
    shell:
        'python -m eval collect --preset "$PRESET" --results {params.results} {params.measures} '
        "--metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"


# Which files were asked: generated, official, or something else under an official name.
rule sources:
    input:
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
        table=[R / "benchmarks/official.json"] if FETCHED else [],
    output:
        R / "benchmarks.csv",
    log:
        R / "logs/benchmarks.log",
    resources:
        **asks("small"),
    params:
        benchmarks=R / "benchmarks",
        settings=digest(preset.benchmarks),
    shell:
        'python -m eval sources --preset "$PRESET" --benchmarks {params.benchmarks} --out {output} > {log} 2>&1'


rule words:
    input:
        scores=shards("scores/base/{shard}.arrow"),
        train=shards("corpus/train/{shard}"),
        tokenizer=R / "tokenizer",
    output:
        words=R / "words.parquet",
        tokens=R / "tokens.parquet",
    log:
        R / "logs/words.log",
    resources:
        **asks("small"),
    params:
        scores=R / "scores/base",
        train=R / "corpus/train",
        captions=preset.evaluation.word_captions,
    shell:
        'python -m eval words --preset "$PRESET" --scores {params.scores} --train {params.train} '
        "--tokenizer {input.tokenizer} --captions {params.captions} --out {output.words} --tokens {output.tokens} > {log} 2>&1"


rule mutual:
    input:
        runs=expand(R / "runs/{run}/pretrain", run=RUNS),
        scores=R / "scores/heldout.arrow",
        val=R / f"corpus/val/{WHOLE}",
        tokenizer=R / "tokenizer",
    output:
        R / "mutual.parquet",
    log:
        R / "logs/mutual.log",
    resources:
        **asks("small"),
    params:
        results=R,
    shell:
        'python -m eval mutual --preset "$PRESET" --results {params.results} --scores {input.scores} '
        "--val {input.val} --tokenizer {input.tokenizer} --out {output} > {log} 2>&1"


rule training:
    input:
        expand(R / "runs/{run}/pretrain", run=RUNS),
    output:
        R / "training.parquet",
    log:
        R / "logs/training.log",
    resources:
        **asks("small"),
    params:
        results=R,
    shell:
        'python -m eval training --preset "$PRESET" --results {params.results} --out {output} > {log} 2>&1'


# By then all that takes time is done.
rule costs:
    input:
        R / "metrics.csv",
        R / "scores/heldout.arrow",
    output:
        R / "costs.csv",
    log:
        R / "logs/costs.log",
    resources:
        **asks("small"),
    params:
        results=R,
    shell:
        'python -m cluster.spent --preset "$PRESET" --results {params.results} --out {output} > {log} 2>&1'


rule provenance:
    input:
        expand(R / "runs/{run}/{stage}", run=RUNS, stage=preset.stages),
    output:
        R / "provenance.yaml",
    log:
        R / "logs/provenance.log",
    resources:
        **asks("small"),
    params:
        results=R,
    shell:
        'python -m eval provenance --preset "$PRESET" --results {params.results} --out {output} > {log} 2>&1'


rule quality:
    input:
        R / "reference/base",
    output:
        R / "reference.json",
    log:
        R / "logs/quality.log",
    resources:
        **asks("small"),
    shell:
        "cp {input}/quality.json {output} 2> {log}"
