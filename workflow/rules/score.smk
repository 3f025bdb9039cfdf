rule score:
    # All seeds of a cell at once: starting VLMEvalKit costs more than scoring a small benchmark.
    input:
        predictions=expand(
            R / "predictions" / CHECKPOINT / "{benchmark}{picture}.tsv",
            seed=range(preset.seeds),
            benchmark=BENCHMARKS,
            picture=PICTURES,
            allow_missing=True,
        ),
        runs=expand(
            R / f"runs/{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}",
            seed=range(preset.seeds),
            allow_missing=True,
        ),
    output:
        metrics=R / "measures/{arch}/{objective}/{scale}.csv",
        item_rows=R / "measures/{arch}/{objective}/{scale}.parquet",
    log:
        R / "logs/score/{arch}/{objective}/{scale}.log",
    params:
        checkpoints=lambda w: " ".join(
            f"--checkpoint {CHECKPOINT.format(**w, seed=seed)}" for seed in range(preset.seeds)
        ),
    shell:
        "{VLMEVALKIT} -m eval.vlmevalkit score --benchmarks {R}/benchmarks --predictions {R}/predictions --runs {R}/runs "
        "{params.checkpoints} --metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"


rule score_degenerate:
    input:
        R / "predictions/baseline",
    output:
        metrics=R / "measures/baseline.csv",
        item_rows=R / "measures/baseline.parquet",
    log:
        R / "logs/score/baseline.log",
    params:
        seeds=preset.seeds,
    shell:
        "{VLMEVALKIT} -m eval.vlmevalkit score --benchmarks {R}/benchmarks --predictions {R}/predictions --runs {R}/runs "
        "$(cd {R}/predictions && printf -- '--checkpoint %s ' baseline/*/seed*) "
        "--metrics {output.metrics} --items {output.item_rows} > {log} 2>&1"
