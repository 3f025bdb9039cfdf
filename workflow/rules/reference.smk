rule reference:
    input:
        train=R / "corpus/train",
        val=R / "corpus/val",
        text_only=R / "corpus/text_only",
        tokenizer=R / "tokenizer",
        llm=R / "backbones/llm",
    output:
        directory(R / "reference/base"),
    log:
        R / "logs/reference/base.log",
    threads: preset.threads("reference")
    resources:
        **asks("reference"),
    params:
        settings=digest(preset.reference),
        state=R / ".state/reference",
    shell:
        '{resources.launch} reference --preset "$PRESET" --train {input.train} --val {input.val} '
        "--text-only {input.text_only} --tokenizer {input.tokenizer} --llm {input.llm} --out {output} "
        "--state {params.state} > {log} 2>&1"


rule scores:
    input:
        train=R / "corpus/train",
        tokenizer=R / "tokenizer",
        reference=R / "reference/base",
    output:
        R / "scores/base.arrow",
    log:
        R / "logs/scores/base.log",
    threads: preset.threads("scores")
    resources:
        **asks("scores"),
    params:
        settings=digest({"cross_fit": preset.reference.cross_fit, "seed": preset.reference.seed}),
    shell:
        'prior score --preset "$PRESET" --train {input.train} --tokenizer {input.tokenizer} '
        "--reference {input.reference} --out {output} > {log} 2>&1"
