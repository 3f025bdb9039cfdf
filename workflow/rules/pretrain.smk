rule pretrain:
    input:
        unpack(pretrain_inputs),
    output:
        directory(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain"),
    log:
        R / "logs/pretrain/{arch}/{objective}/{scale}/seed{seed}.log",
    threads: preset.pretrain.threads
    params:
        preset=PRESET,
        settings=lambda w: digest(
            {
                "training": preset.pretrain,
                "objective": preset.objectives[w.objective],
                "architecture": getattr(preset.architectures, w.arch),
                "loss_captions": preset.evaluation.loss_captions,
                "trajectory_points": preset.evaluation.trajectory_points,
            }
        ),
        state=lambda w: R / f".state/{w.arch}/{w.objective}/{w.scale}/seed{w.seed}/pretrain",
        optional=lambda w, input: " ".join(
            f"--{name} {input[name]}" for name in ("vision", "scores") if name in input.keys()
        ),
    shell:
        "prior pretrain --preset {params.preset} "
        "--run {wildcards.arch}/{wildcards.objective}/{wildcards.scale}/seed{wildcards.seed} "
        "--train {input.train} --val {input.val} --tokenizer {input.tokenizer} --llm {input.llm} {params.optional} "
        "--out {output} --state {params.state} > {log} 2>&1"
