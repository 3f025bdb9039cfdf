rule tokenizer:
    input:
        train=R / "corpus/train",
        text_only=R / "corpus/text_only",
    output:
        directory(R / "tokenizer"),
    log:
        R / "logs/backbones/tokenizer.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.tokenizer),
    shell:
        'prior backbone tokenizer --preset "$PRESET" --train {input.train} --text-only {input.text_only} '
        "--out {output} > {log} 2>&1"


rule llm:
    input:
        text_only=R / "corpus/text_only",
        tokenizer=R / "tokenizer",
    output:
        directory(R / "backbones/llm"),
    log:
        R / "logs/backbones/llm.log",
    threads: preset.threads("llm")
    resources:
        **asks("llm"),
    params:
        settings=digest(preset.backbones.llm),
        state=R / ".state/llm",
    shell:
        '{resources.launch} backbone llm --preset "$PRESET" --text-only {input.text_only} --tokenizer {input.tokenizer} '
        "--out {output} --state {params.state} > {log} 2>&1"


rule vision:
    input:
        train=R / "corpus/train",
        tokenizer=R / "tokenizer",
    output:
        directory(R / "backbones/vision"),
    log:
        R / "logs/backbones/vision.log",
    threads: preset.threads("vision")
    resources:
        **asks("vision"),
    params:
        settings=digest(preset.backbones.vision),
        state=R / ".state/vision",
    shell:
        '{resources.launch} backbone vision --preset "$PRESET" --train {input.train} --tokenizer {input.tokenizer} '
        "--out {output} --state {params.state} > {log} 2>&1"
