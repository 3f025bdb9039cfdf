rule pretrain:
    input:
        unpack(pretrain_inputs),
    output:
        [directory(path) for path in each_seed(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain")],
    log:
        R / f"logs/pretrain/{CELL}.log",
    priority: largest_first
    threads: preset.threads("pretrain")
    resources:
        **asks("pretrain"),
    params:
        settings=lambda w: digest(
            {
                "training": preset.pretrain,
                "objective": preset.objectives[w.objective],
                "architecture": getattr(preset.architectures, w.arch),
                "loss_captions": preset.evaluation.loss_captions,
                "trajectory_points": preset.evaluation.trajectory_points,
            }
        ),
        runs=run_options,
        folder=R / "runs",
        state=R / ".state",
        optional=lambda w, input: " ".join(
            f"--{name} {input[name]}" for name in ("vision", "scores") if name in input.keys()
        ),
    shell:
        '{resources.launch} pretrain --preset "$PRESET" {params.runs} '
        "--train {input.train} --val {input.val} --tokenizer {input.tokenizer} --llm {input.llm} {params.optional} "
        "--runs {params.folder} --state {params.state} > {log} 2>&1"
