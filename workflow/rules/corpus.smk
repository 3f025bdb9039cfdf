rule corpus:
    input:
        captions_files,
    output:
        directory(R / "corpus/{split}"),
    log:
        R / "logs/corpus/{split}.log",
    wildcard_constraints:
        split="train|val|text_only",
    resources:
        **asks("small"),
    params:
        settings=lambda w: digest(corpus_settings(w.split)),
        pictures=lambda w: pictures_state(),
    shell:
        'prior corpus --preset "$PRESET" --split {wildcards.split} --out {output} > {log} 2>&1'


rule questions:
    output:
        R / "corpus/questions.jsonl",
    log:
        R / "logs/corpus/questions.log",
    resources:
        **asks("small"),
    params:
        settings=digest(
            {
                "corpus": corpus_settings("train"),
                "questions": preset.tune and preset.tune.questions,
                "seed": preset.tune and preset.tune.seed,
            }
        ),
    shell:
        'prior questions --preset "$PRESET" --out {output} > {log} 2>&1'
