CHECKPOINT = f"{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}/final"
PICTURES = ["", ".no_picture"] if preset.evaluation.no_picture else [""]


rule predict:
    input:
        run=R / f"runs/{{arch}}/{{objective}}/{{scale}}/seed{{seed}}/{preset.final_stage}",
        benchmarks=expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
    output:
        expand(
            R / "predictions" / CHECKPOINT / "{benchmark}{picture}.tsv",
            benchmark=BENCHMARKS,
            picture=PICTURES,
            allow_missing=True,
        ),
    log:
        R / "logs/predict/{arch}/{objective}/{scale}/seed{seed}.log",
    threads: preset.evaluation.threads
    params:
        preset=PRESET,
        benchmarks=R / "benchmarks",
        settings=digest(
            {
                "answers": {name: entry.answer for name, entry in preset.benchmarks.items()},
                "evaluation": preset.evaluation.model_dump(exclude={"loss_captions", "trajectory_points"}),
            }
        ),
        out=lambda w: R / "predictions" / CHECKPOINT.format(**w),
    shell:
        "python -m eval predict --preset {params.preset} --arch {wildcards.arch} --checkpoint {input.run}/final "
        "--benchmarks {params.benchmarks} --out {params.out} > {log} 2>&1"


rule degenerate:
    input:
        expand(R / "benchmarks/{benchmark}.tsv", benchmark=BENCHMARKS),
    output:
        directory(R / "predictions/baseline"),
    log:
        R / "logs/predict/baseline.log",
    params:
        preset=PRESET,
        benchmarks=R / "benchmarks",
        settings=digest({"benchmarks": BENCHMARKS, "seeds": preset.seeds}),
    shell:
        "python -m eval degenerate --preset {params.preset} --benchmarks {params.benchmarks} --out {output} > {log} 2>&1"
