def pretrain_inputs(wildcards):
    """A run waits for what its architecture and its objective read, and for nothing else."""
    inputs = {
        "train": R / "corpus/train",
        "val": R / "corpus/val",
        "tokenizer": R / "tokenizer",
        "llm": R / "backbones/llm",
    }
    if wildcards.arch == "hlvlm":
        inputs["vision"] = R / "backbones/vision"
    if REGISTRY[preset.objectives[wildcards.objective].kind].needs_scores:
        inputs["scores"] = R / "scores/base.arrow"
    return inputs


rule pretrain:
    input:
        unpack(pretrain_inputs),
    output:
        directory(R / "runs/{arch}/{objective}/{scale}/seed{seed}/pretrain"),
    log:
        R / "logs/pretrain/{arch}/{objective}/{scale}/seed{seed}.log",
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
        state=lambda w: R / f".state/{w.arch}/{w.objective}/{w.scale}/seed{w.seed}/pretrain",
        optional=lambda w, input: " ".join(
            f"--{name} {input[name]}" for name in ("vision", "scores") if name in input.keys()
        ),
    threads: preset.pretrain.threads
    shell:
        "prior pretrain --preset {PRESET} "
        "--run {wildcards.arch}/{wildcards.objective}/{wildcards.scale}/seed{wildcards.seed} "
        "--train {input.train} --val {input.val} --tokenizer {input.tokenizer} --llm {input.llm} {params.optional} "
        "--out {output} --state {params.state} > {log} 2>&1"
