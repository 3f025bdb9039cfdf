rule tune:
    input:
        checkpoint=R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain",
        train=R / "corpus/train",
        questions=R / "corpus/questions.jsonl",
        tokenizer=R / "tokenizer",
    output:
        directory(R / "runs/{arch}/{objective}/{scale}/seed{seed}/tuned"),
    log:
        R / "logs/tune/{arch}/{objective}/{scale}/seed{seed}.log",
    threads: preset.tune.training.threads if preset.tune else 1
    params:
        preset=PRESET,
        settings=digest(preset.tune),
        state=lambda w: R / f".state/{w.arch}/{w.objective}/{w.scale}/seed{w.seed}/tuned",
    shell:
        "prior tune --preset {params.preset} "
        "--run {wildcards.arch}/{wildcards.objective}/{wildcards.scale}/seed{wildcards.seed} "
        "--checkpoint {input.checkpoint}/final --train {input.train} --questions {input.questions} "
        "--tokenizer {input.tokenizer} --out {output} --state {params.state} > {log} 2>&1"
