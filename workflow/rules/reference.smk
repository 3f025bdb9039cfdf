rule reference:
    input:
        unpack(reference_inputs),
        tokenizer=R / "tokenizer",
        llm=R / "backbones/llm",
    output:
        directory(R / "reference/base"),
    log:
        R / "logs/reference/base.log",
    benchmark:
        R / "timings/reference/base.tsv"
    threads: preset.cores("reference")
    resources:
        **asks("reference"),
    params:
        settings=digest(preset.reference),
        state=R / ".state/reference",
        tokens=R / "tokens",
        given=lambda w, input: given(input, "text_only"),
    shell:
        '{resources.launch} reference --preset "$PRESET" --tokens {params.tokens} {params.given} '
        "--tokenizer {input.tokenizer} --llm {input.llm} --out {output} --state {params.state} > {log} 2>&1"


rule scores:
    input:
        tokens=R / "tokens/train/{shard}.arrow",
        tokenizer=R / "tokenizer",
        reference=R / "reference/base",
    output:
        R / "scores/base/{shard}.arrow",
    log:
        R / "logs/scores/base/{shard}.log",
    benchmark:
        R / "timings/scores/base/{shard}.tsv"
    wildcard_constraints:
        shard="[0-9]+",
    threads: preset.cores("scores")
    resources:
        **asks("scores"),
    params:
        settings=digest({"cross_fit": preset.reference.cross_fit, "seed": preset.reference.seed}),
    shell:
        'prior score --preset "$PRESET" --tokens {input.tokens} --tokenizer {input.tokenizer} '
        "--reference {input.reference} --out {output} > {log} 2>&1"


# Held-out captions have scores for what is measured on them: with folds each by one of the references, none of which has
# seen them.
rule heldout_scores:
    input:
        tokens=R / f"tokens/val/{WHOLE}.arrow",
        tokenizer=R / "tokenizer",
        reference=R / "reference/base",
    output:
        R / "scores/heldout.arrow",
    log:
        R / "logs/scores/heldout.log",
    benchmark:
        R / "timings/scores/heldout.tsv"
    threads: preset.cores("scores")
    resources:
        **asks("scores"),
    params:
        settings=digest({"cross_fit": preset.reference.cross_fit, "seed": preset.reference.seed}),
    shell:
        'prior score --preset "$PRESET" --tokens {input.tokens} --tokenizer {input.tokenizer} '
        "--reference {input.reference} --out {output} > {log} 2>&1"
