rule tune:
    input:
        checkpoints=each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain"),
        train=R / "corpus/train",
        questions=R / "corpus/questions.jsonl",
        tokenizer=R / "tokenizer",
    output:
        [directory(path) for path in each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/tuned")],
    log:
        R / f"logs/tune/{CELL}.log",
    threads: preset.tune.training.threads if preset.tune else 1
    params:
        preset=PRESET,
        settings=digest(preset.tune),
        runs=run_options,
        folder=R / "runs",
        state=R / ".state",
    shell:
        "prior tune --preset {params.preset} {params.runs} --train {input.train} --questions {input.questions} "
        "--tokenizer {input.tokenizer} --runs {params.folder} --state {params.state} > {log} 2>&1"
