rule corpus:
    output:
        directory(R / "corpus/{split}"),
    log:
        R / "logs/corpus/{split}.log",
    wildcard_constraints:
        split="train|val|text_only",
    params:
        preset=PRESET,
        settings=digest(preset.corpus),
    shell:
        "prior corpus --preset {params.preset} --split {wildcards.split} --out {output} > {log} 2>&1"


rule questions:
    output:
        R / "corpus/questions.jsonl",
    log:
        R / "logs/corpus/questions.log",
    params:
        preset=PRESET,
        settings=digest(
            {
                "corpus": preset.corpus,
                "questions": preset.tune and preset.tune.questions,
                "seed": preset.tune and preset.tune.seed,
            }
        ),
    shell:
        "prior questions --preset {params.preset} --out {output} > {log} 2>&1"
