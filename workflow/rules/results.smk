ARMS = [f"{arch}/{objective}" for arch in preset.architectures.names() for objective in preset.objectives]
MEASURES = ["baseline", *ARMS] if BENCHMARKS else []


rule metrics:
    input:
        measures=expand(R / "measures/{arm}.{ending}", arm=MEASURES, ending=["csv", "parquet"]),
        runs=expand(R / "runs/{run}/pretrain", run=RUNS),
    output:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
    log:
        R / "logs/metrics.log",
    params:
        preset=PRESET,
        results=R,
        settings=digest({"arms": MEASURES, "runs": RUNS}),
    shell:
        "python -m eval collect --preset {params.preset} --results {params.results} --metrics {output.metrics} --items {output.item_rows} "
        "> {log} 2>&1"


rule fits:
    input:
        R / "metrics.csv",
    output:
        R / "fits.json",
    log:
        R / "logs/fits.log",
    params:
        preset=PRESET,
        settings=digest(preset.statistics),
    shell:
        "python -m eval fit --preset {params.preset} --metrics {input} --out {output} > {log} 2>&1"


rule words:
    input:
        scores=R / "scores/base.arrow",
        train=R / "corpus/train",
        tokenizer=R / "tokenizer",
    output:
        R / "words.parquet",
    log:
        R / "logs/words.log",
    shell:
        "python -m eval words --scores {input.scores} --train {input.train} --tokenizer {input.tokenizer} "
        "--out {output} > {log} 2>&1"


rule tables:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        words=R / "words.parquet",
        reference=R / "reference/base",
        paper=PAPER,
    output:
        directory(R / "tables"),
    log:
        R / "logs/tables.log",
    params:
        preset=PRESET,
        settings=digest(preset.statistics),
    shell:
        "python -m eval tables --preset {params.preset} --metrics {input.metrics} --items {input.item_rows} "
        "--fits {input.fits} --words {input.words} --quality {input.reference}/quality.json --paper {input.paper} "
        "--out {output} > {log} 2>&1"


rule plots:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        words=R / "words.parquet",
        paper=PAPER,
    output:
        directory(R / "figures"),
    log:
        R / "logs/figures.log",
    params:
        preset=PRESET,
        settings=digest(preset.statistics),
    shell:
        "python -m eval figures --preset {params.preset} --metrics {input.metrics} --items {input.item_rows} "
        "--fits {input.fits} --words {input.words} --paper {input.paper} --out {output} > {log} 2>&1"


rule report:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        words=R / "words.parquet",
        tables=R / "tables",
        figures=R / "figures",
        reference=R / "reference/base",
        paper=PAPER,
    output:
        R / "report.html",
    log:
        R / "logs/report.log",
    params:
        preset=PRESET,
        results=R,
    shell:
        "python -m eval report --preset {params.preset} --results {params.results} --paper {input.paper} "
        "--out {output} > {log} 2>&1"
