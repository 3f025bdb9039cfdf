CELLS = [
    f"{arch}/{objective}/{scale}"
    for arch in preset.architectures.names()
    for objective in preset.objectives
    for scale in preset.scales
]
MEASURES = ["baseline", *CELLS] if BENCHMARKS else []


rule metrics:
    input:
        measures=expand(R / "measures/{cell}.{ending}", cell=MEASURES, ending=["csv", "parquet"]),
        runs=expand(R / "runs/{run}/pretrain", run=RUNS),
    output:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
    log:
        R / "logs/metrics.log",
    params:
        settings=digest({"cells": MEASURES, "runs": RUNS}),
    shell:
        "python -m eval collect --preset {PRESET} --results {R} --metrics {output.metrics} --items {output.item_rows} "
        "> {log} 2>&1"


rule fits:
    input:
        R / "metrics.csv",
    output:
        R / "fits.json",
    log:
        R / "logs/fits.log",
    params:
        settings=digest(preset.statistics),
    shell:
        "python -m eval fit --preset {PRESET} --metrics {input} --out {output} > {log} 2>&1"


rule tables:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        paper="results/paper",
    output:
        directory(R / "tables"),
    log:
        R / "logs/tables.log",
    params:
        settings=digest(preset.statistics),
    shell:
        "python -m eval tables --preset {PRESET} --metrics {input.metrics} --items {input.item_rows} --fits {input.fits} "
        "--paper {input.paper} --out {output} > {log} 2>&1"


rule plots:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        scores=R / "scores/base.arrow",
        train=R / "corpus/train",
        tokenizer=R / "tokenizer",
        paper="results/paper",
    output:
        directory(R / "figures"),
    log:
        R / "logs/figures.log",
    params:
        settings=digest(preset.statistics),
    shell:
        "python -m eval figures --preset {PRESET} --metrics {input.metrics} --items {input.item_rows} --fits {input.fits} "
        "--scores {input.scores} --train {input.train} --tokenizer {input.tokenizer} --paper {input.paper} "
        "--out {output} > {log} 2>&1"


rule report:
    input:
        metrics=R / "metrics.csv",
        item_rows=R / "items.parquet",
        fits=R / "fits.json",
        tables=R / "tables",
        figures=R / "figures",
        reference=R / "reference/base",
    output:
        R / "report.html",
    log:
        R / "logs/report.log",
    shell:
        "python -m eval report --preset {PRESET} --results {R} --out {output} > {log} 2>&1"
