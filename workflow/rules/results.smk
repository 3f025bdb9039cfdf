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


rule fits:
    input:
        R / "metrics.csv",
    output:
        R / "fits.json",
    log:
        R / "logs/fits.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.statistics),
    shell:
        'python -m eval fit --preset "$PRESET" --metrics {input} --out {output} > {log} 2>&1'


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


rule tables:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        words=R / "words.parquet",
        asked=R / "benchmarks.csv",
        reference=R / "reference/base",
        paper=PAPER,
    output:
        directory(R / "tables"),
    log:
        R / "logs/tables.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.statistics),
    shell:
        'python -m eval tables --preset "$PRESET" --metrics {input.metrics} --items {input.item_rows} '
        "--fits {input.fits} --words {input.words} --asked {input.asked} "
        "--quality {input.reference}/quality.json --paper {input.paper} --out {output} > {log} 2>&1"


rule plots:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        tokens=R / "tokens.parquet",
        paper=PAPER,
    output:
        directory(R / "figures"),
    log:
        R / "logs/figures.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.statistics),
    shell:
        'python -m eval figures --preset "$PRESET" --metrics {input.metrics} --items {input.item_rows} '
        "--fits {input.fits} --tokens {input.tokens} --paper {input.paper} --out {output} > {log} 2>&1"


rule report:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        words=R / "words.parquet",
        asked=R / "benchmarks.csv",
        tables=R / "tables",
        figures=R / "figures",
        reference=R / "reference/base",
        paper=PAPER,
    output:
        page=R / "report.html",
        provenance=R / "provenance.yaml",
    log:
        R / "logs/report.log",
    resources:
        **asks("small"),
    params:
        results=R,
    shell:
        'python -m eval report --preset "$PRESET" --results {params.results} --paper {input.paper} '
        "--out {output.page} --provenance {output.provenance} > {log} 2>&1"
