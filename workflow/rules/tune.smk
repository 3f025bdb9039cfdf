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
    threads: preset.threads("tune")
    resources:
        **asks("tune"),
    params:
        settings=lambda w: digest({"tune": preset.tune, "architecture": getattr(preset.architectures, w.arch)}),
        runs=run_options,
        folder=R / "runs",
        state=R / ".state",
    shell:
        '{resources.launch} tune --preset "$PRESET" {params.runs} --train {input.train} --questions {input.questions} '
        "--tokenizer {input.tokenizer} --runs {params.folder} --state {params.state} > {log} 2>&1"
