rule pretrain:
    input:
        unpack(pretrain_inputs),
    output:
        [directory(path) for path in each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain")],
    log:
        R / f"logs/pretrain/{CELL}.log",
    benchmark:
        R / f"timings/pretrain/{CELL}.tsv"
    priority: largest_first
    threads: preset.cores("pretrain")
    resources:
        **asks("pretrain"),
    params:
        settings=lambda w: digest(
            {
                "training": preset.pretraining(w.arch),
                "objective": preset.objectives[w.objective],
                "architecture": getattr(preset.architectures, w.arch),
                "loss_captions": preset.evaluation.loss_captions,
                "trajectory_points": preset.evaluation.trajectory_points,
                "kept": preset.kept_steps(w.objective, w.scale),
            }
        ),
        runs=run_options,
        corpus=R / "corpus",
        tokens=R / "tokens",
        folder=R / "runs",
        state=R / ".state",
        given=lambda w, input: given(input, "vision", scores=R / "scores/base"),
    shell:
        '{resources.launch} pretrain --preset "$PRESET" {params.runs} --corpus {params.corpus} --tokens {params.tokens} '
        "--tokenizer {input.tokenizer} --llm {input.llm} {params.given} "
        "--runs {params.folder} --state {params.state} > {log} 2>&1"
