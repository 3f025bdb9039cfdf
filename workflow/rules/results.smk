"""Fits, results, claims, viewer and report: of small files, which may also be those of a run that was published."""


rule fits:
    input:
        STORED / METRICS,
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


rule outcomes:
    input:
        stored=stored_files(),
        fits=R / "fits.json",
        paper=PAPER,
    output:
        tables=expand(R / "tables/{name}.{ending}", name=OUTCOMES, ending=[e for e in TABLE_ENDINGS if e != "html"]),
        pages=[shown(f"tables/{name}.html", name) for name in OUTCOMES],
        prints=expand(R / "figures/{name}.pdf", name=DRAWN),
        figures=[shown(f"figures/{name}.png", name) for name in DRAWN],
    log:
        R / "logs/outcomes.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.statistics),
        stored=STORED,
        results=R,
    shell:
        'python -m eval outcomes --preset "$PRESET" --stored {params.stored} --fits {input.fits} --paper {input.paper} '
        "--tables {params.results}/tables --figures {params.results}/figures > {log} 2>&1"


rule claims:
    input:
        stored=stored_files(),
        fits=R / "fits.json",
        paper=PAPER,
    output:
        multiext(str(R / "claims"), ".csv", ".md"),
        shown("claims.html", "claims"),
    log:
        R / "logs/claims.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.statistics),
        stored=STORED,
        results=R,
    shell:
        'python -m eval claims --preset "$PRESET" --stored {params.stored} --fits {input.fits} --paper {input.paper} '
        "--out {params.results} > {log} 2>&1"


rule viewer:
    input:
        item_rows=R / "items.parquet",
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
        runs=viewed_runs(),
        val=R / f"corpus/val/{WHOLE}",
        scores=R / "scores/heldout.arrow",
        tokenizer=R / "tokenizer",
    output:
        R / "viewer.html",
    log:
        R / "logs/viewer.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.evaluation),
        results=R,
    shell:
        'python -m eval viewer --preset "$PRESET" --results {params.results} --out {output} > {log} 2>&1'


rule report:
    input:
        stored=stored_files(),
        results=rules.outcomes.output,
        claims=rules.claims.output,
        paper=PAPER,
        viewer=[R / "viewer.html"] if STORED == R else [],
    output:
        R / "report.html",
    log:
        R / "logs/report.log",
    resources:
        **asks("small"),
    params:
        # A function, or braces in a pattern of files would be taken for wildcards.
        settings=lambda w: digest(preset),
        stored=STORED,
        results=R,
    shell:
        'python -m eval report --preset "$PRESET" --stored {params.stored} --results {params.results} '
        "--paper {input.paper} --out {output} > {log} 2>&1"
