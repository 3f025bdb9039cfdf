rule tokenizer:
    input:
        unpack(tokenizer_inputs),
    output:
        directory(R / "tokenizer"),
    log:
        R / "logs/backbones/tokenizer.log",
    benchmark:
        R / "timings/backbones/tokenizer.tsv"
    resources:
        **asks("small"),
    params:
        settings=digest(preset.tokenizer),
        given=lambda w, input: given(input, "hub", "text_only", train=R / "corpus/train"),
    shell:
        'prior backbone tokenizer --preset "$PRESET" {params.given} --out {output} > {log} 2>&1'


rule llm:
    input:
        unpack(llm_inputs),
        tokenizer=R / "tokenizer",
    output:
        directory(R / "backbones/llm"),
    log:
        R / "logs/backbones/llm.log",
    benchmark:
        R / "timings/backbones/llm.tsv"
    threads: preset.cores("llm")
    resources:
        **asks("llm"),
    params:
        settings=digest(preset.backbones.llm),
        state=R / ".state/llm",
        given=lambda w, input: given(input, "hub", "text_only"),
    shell:
        '{resources.launch} backbone llm --preset "$PRESET" {params.given} --tokenizer {input.tokenizer} '
        "--out {output} --state {params.state} > {log} 2>&1"


rule vision:
    input:
        unpack(vision_inputs),
    output:
        directory(R / "backbones/vision"),
    log:
        R / "logs/backbones/vision.log",
    benchmark:
        R / "timings/backbones/vision.tsv"
    threads: preset.cores("vision")
    resources:
        **asks("vision"),
    params:
        settings=digest(preset.backbones.vision),
        state=R / ".state/vision",
        given=lambda w, input: given(input, "hub", "tokenizer", train=R / "corpus/train", tokens=R / "tokens/train"),
    shell:
        '{resources.launch} backbone vision --preset "$PRESET" {params.given} '
        "--out {output} --state {params.state} > {log} 2>&1"
