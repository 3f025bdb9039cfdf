rule tune:
    input:
        unpack(tune_inputs),
        checkpoints=each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain"),
        questions=R / "corpus/questions.jsonl",
        tokenizer=R / "tokenizer",
    output:
        [directory(path) for path in each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/tuned")],
    log:
        R / f"logs/tune/{CELL}.log",
    benchmark:
        R / f"timings/tune/{CELL}.tsv"
    threads: preset.cores("tune")
    resources:
        **asks("tune"),
    params:
        settings=lambda w: digest({"tune": preset.tune, "architecture": getattr(preset.architectures, w.arch)}),
        runs=run_options,
        folder=R / "runs",
        state=R / ".state",
        given=lambda w, input: given(input, corpus=R / "corpus/train"),
    shell:
        '{resources.launch} tune --preset "$PRESET" {params.runs} {params.given} --questions {input.questions} '
        "--tokenizer {input.tokenizer} --runs {params.folder} --state {params.state} > {log} 2>&1"
