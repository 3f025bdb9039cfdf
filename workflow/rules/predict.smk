# First of all that can run, since Snakemake starts nothing more when a job has failed: a mistake in a benchmark shows
# before hours were spent, not after. Training does not depend on it, or it would be done again with every benchmark.
rule prompts:
    input:
        R / "benchmarks/{benchmark}.tsv",
    output:
        R / "benchmarks/{benchmark}.jsonl",
    log:
        R / "logs/benchmarks/{benchmark}.prompts.log",
    priority: 100
    resources:
        **asks("small"),
    params:
        answer=lambda w: preset.benchmarks[w.benchmark].answer,
        official=official_option,
    shell:
        '"$KIT" -m eval.vlmevalkit prompts --benchmark {input} --answer {params.answer} {params.official} '
        '--cache "$CACHE/prompts" --out {output} > {log} 2>&1'


# A checkpoint answers all benchmarks of a batch in one job, for it is loaded once.
for number, batch in enumerate(BATCHES):

    rule:
        name:
            f"predict_{number}" if number else "predict"
        input:
            runs=asked_runs(batch),
            benchmarks=expand(R / "benchmarks/{benchmark}.{ending}", benchmark=batch, ending=["tsv", "jsonl"]),
        output:
            [each_seed(path) for name in batch for path in predictions(name)],
        log:
            R / f"logs/predict/{CELL}.{number}.log",
        benchmark:
            R / f"timings/predict/{CELL}.{number}.tsv"
        threads: preset.cores("predict")
        resources:
            **asks("predict"),
        params:
            settings=digest(
                {
                    "answers": {name: preset.benchmarks[name].answer for name in batch},
                    "evaluation": preset.evaluation.asking(),
                }
            ),
            runs=run_options,
            benchmark=[f"--benchmark {name}" for name in batch],
            benchmarks=R / "benchmarks",
            folder=R / "runs",
            out=R / "predictions",
            state=R / ".state/predict",
        shell:
            'python -m eval predict --preset "$PRESET" {params.runs} --runs {params.folder} {params.benchmark} '
            "--benchmarks {params.benchmarks} --out {params.out} --state {params.state} > {log} 2>&1"

    # Checkpoints on the way are many: those of a step are a job, asked with pictures alone.
    if asked_on_the_way(batch):

        rule:
            name:
                f"predict_step_{number}" if number else "predict_step"
            input:
                runs=each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain"),
                benchmarks=expand(
                    R / "benchmarks/{benchmark}.{ending}", benchmark=asked_on_the_way(batch), ending=["tsv", "jsonl"]
                ),
            output:
                [each_seed(step_predictions(name)) for name in asked_on_the_way(batch)],
            log:
                R / f"logs/predict/{CELL}.step{{step}}.{number}.log",
            benchmark:
                R / f"timings/predict/{CELL}.step{{step}}.{number}.tsv"
            wildcard_constraints:
                step="[0-9]+",
            threads: preset.cores("predict")
            resources:
                **asks("predict"),
            params:
                settings=digest(
                    {
                        "answers": {name: preset.benchmarks[name].answer for name in asked_on_the_way(batch)},
                        "evaluation": preset.evaluation.asking(),
                    }
                ),
                runs=run_options,
                benchmark=[f"--benchmark {name}" for name in asked_on_the_way(batch)],
                benchmarks=R / "benchmarks",
                folder=R / "runs",
                out=R / "predictions",
                state=R / ".state/predict",
            shell:
                'python -m eval predict --preset "$PRESET" {params.runs} --step {wildcards.step} '
                "--runs {params.folder} {params.benchmark} --benchmarks {params.benchmarks} --out {params.out} "
                "--state {params.state} > {log} 2>&1"
