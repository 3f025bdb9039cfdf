CHECKPOINT = f"{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}/final"
PICTURES = ["", ".no_picture"] if preset.evaluation.no_picture else [""]


# First of all that can run, since Snakemake starts nothing more when a job has failed: a mistake in a benchmark shows
# before hours were spent, not after. Training does not depend on it, or it would be done again with every benchmark.
rule check_benchmarks:
    input:
        expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
    output:
        touch(R / "benchmarks/.checked"),
    log:
        R / "logs/benchmarks/check.log",
    priority: 100
    params:
        benchmarks=R / "benchmarks",
        settings=digest({name: entry.answer for name, entry in preset.benchmarks.items()}),
    shell:
        'python -m eval check --preset "$PRESET" --benchmarks {params.benchmarks} > {log} 2>&1'


rule predict:
    input:
        runs=each_seed(R / f"runs/{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}"),
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
        checked=R / "benchmarks/.checked",
    output:
        expand(
            R / "predictions" / CHECKPOINT / "{benchmark}{picture}.tsv",
            seed=SEEDS,
            benchmark=BENCHMARKS,
            picture=PICTURES,
            allow_missing=True,
        ),
    log:
        R / f"logs/predict/{CELL}.log",
    threads: preset.evaluation.threads
    params:
        benchmarks=R / "benchmarks",
        settings=digest(
            {
                "answers": {name: entry.answer for name, entry in preset.benchmarks.items()},
                "evaluation": preset.evaluation.model_dump(exclude={"loss_captions", "trajectory_points"}),
            }
        ),
        runs=run_options,
        folder=R / "runs",
        out=R / "predictions",
    shell:
        'python -m eval predict --preset "$PRESET" {params.runs} --runs {params.folder} '
        "--benchmarks {params.benchmarks} --out {params.out} > {log} 2>&1"


rule degenerate:
    input:
        expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
        R / "benchmarks/.checked",
    output:
        directory(R / "predictions/baseline"),
    log:
        R / "logs/predict/baseline.log",
    params:
        benchmarks=R / "benchmarks",
        settings=digest({"benchmarks": BENCHMARKS, "seeds": preset.seeds}),
    shell:
        'python -m eval degenerate --preset "$PRESET" --benchmarks {params.benchmarks} --out {output} > {log} 2>&1'
