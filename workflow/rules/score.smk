# Starting VLMEvalKit takes longer than scoring the answers of a small model: small presets score a benchmark at once.
rule score:
    input:
        predictions=lambda w: [path for run in scored(w) for path in answered(run, w.benchmark)],
        runs=lambda w: [R / "runs" / run / preset.asked_stage(w.benchmark) for run in scored(w)],
        benchmark=R / "benchmarks/{benchmark}.tsv",
    output:
        metrics=R / f"measures/{MEASURE}.csv",
        item_rows=R / f"measures/{MEASURE}.parquet",
    log:
        R / f"logs/score/{MEASURE}.log",
    benchmark:
        R / f"timings/score/{MEASURE}.tsv"
    wildcard_constraints:
        benchmark=either(name for name in BENCHMARKS if name not in CAPTIONED),
    resources:
        **asks("small"),
    params:
        results=R,
        options=score_options,
    shell:
        '"$KIT" -m eval.vlmevalkit score --benchmark {input.benchmark} {params.options} '
        "--predictions {params.results}/predictions --runs {params.results}/runs "
        "--metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"


if not preset.seeds_together:

    rule score_degenerate:
        input:
            R / "benchmarks/{benchmark}.tsv",
        output:
            metrics=R / "measures/{benchmark}/baseline.csv",
            item_rows=R / "measures/{benchmark}/baseline.parquet",
        log:
            R / "logs/score/{benchmark}/baseline.log",
        benchmark:
            R / "timings/score/{benchmark}/baseline.tsv"
        resources:
            **asks("small"),
        params:
            results=R,
            official=official_option,
            seeds=preset.seeds,
        shell:
            '"$KIT" -m eval.vlmevalkit score --benchmark {input} {params.official} '
            "--degenerate {params.seeds} --predictions {params.results}/predictions "
            "--metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"


# What captions mention is compared between objectives, so all are scored at once.
rule score_captions:
    input:
        predictions=lambda w: [path for run in RUNS for path in answered(run, w.benchmark)],
        runs=expand(R / "runs/{run}/pretrain", run=RUNS),
        benchmark=R / "benchmarks/{benchmark}.tsv",
        synonyms=R / "benchmarks/{benchmark}.synonyms.txt",
    output:
        metrics=R / "measures/{benchmark}.csv",
        item_rows=R / "measures/{benchmark}.parquet",
    log:
        R / "logs/score/{benchmark}.log",
    benchmark:
        R / "timings/score/{benchmark}.tsv"
    wildcard_constraints:
        benchmark=either(CAPTIONED),
    resources:
        **asks("small"),
    params:
        results=R,
        checkpoints=[f"--checkpoint {run}/pretrain/final" for run in RUNS],
        no_picture="--no-picture" if preset.evaluation.no_picture else "",
    shell:
        "python -m eval captions --benchmark {input.benchmark} --synonyms {input.synonyms} {params.checkpoints} "
        "{params.no_picture} --predictions {params.results}/predictions --runs {params.results}/runs "
        "--metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"
