# All scales and seeds of an arm at once: starting VLMEvalKit costs more than scoring a small benchmark.
rule score:
    input:
        predictions=expand(
            R / "predictions" / CHECKPOINT / "{benchmark}{picture}.tsv",
            scale=preset.scales,
            seed=range(preset.seeds),
            benchmark=BENCHMARKS,
            picture=PICTURES,
            allow_missing=True,
        ),
        runs=expand(
            R / f"runs/{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}",
            scale=preset.scales,
            seed=range(preset.seeds),
            allow_missing=True,
        ),
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
    output:
        metrics=R / "measures/{arch}/{objective}.csv",
        item_rows=R / "measures/{arch}/{objective}.parquet",
    log:
        R / "logs/score/{arch}/{objective}.log",
    params:
        python=VLMEVALKIT,
        results=R,
        benchmarks=[f"--benchmark {name}" for name in BENCHMARKS],
        checkpoints=lambda w: [f"--checkpoint {name}" for name in checkpoints(w.arch, w.objective)],
    shell:
        "{params.python} -m eval.vlmevalkit score {params.benchmarks} {params.checkpoints} "
        "--benchmarks {params.results}/benchmarks --predictions {params.results}/predictions "
        "--runs {params.results}/runs --metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"


rule score_degenerate:
    input:
        predictions=R / "predictions/baseline",
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
    output:
        metrics=R / "measures/baseline.csv",
        item_rows=R / "measures/baseline.parquet",
    log:
        R / "logs/score/baseline.log",
    params:
        python=VLMEVALKIT,
        results=R,
        benchmarks=[f"--benchmark {name}" for name in BENCHMARKS],
    shell:
        "cd {params.results}/predictions; found=$(printf -- '--checkpoint %s ' baseline/*/seed*); cd $OLDPWD; "
        "{params.python} -m eval.vlmevalkit score {params.benchmarks} $found "
        "--benchmarks {params.results}/benchmarks --predictions {params.results}/predictions "
        "--runs {params.results}/runs --metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"
