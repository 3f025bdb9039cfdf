# Only what the compute nodes of a cluster cannot do: fetching wants a network and little else.
localrules:
    fetch_model,
    fetch_file,


rule fetch_model:
    output:
        directory(R / "downloads/models/{model}"),
    log:
        R / "logs/fetch/{model}.log",
    wildcard_constraints:
        model="tokenizer|llm|vision",
    priority: 100
    params:
        source=lambda w: hub_source(w.model),
        weights=lambda w: "--no-weights" if w.model == "tokenizer" else "",
    shell:
        'prior fetch {params.source} --preset "$PRESET" {params.weights} --out {output} > {log} 2>&1'


# A tar file is of no use once its captions and pictures are in the corpus.
rule fetch_file:
    output:
        temp(R / "downloads/files/{file}"),
    log:
        R / "logs/fetch/{file}.log",
    wildcard_constraints:
        file=either(hub_files()),
    retries: 2
    params:
        source=getattr(preset.corpus, "source", None),
    shell:
        'prior fetch {params.source} --preset "$PRESET" --file {wildcards.file} --out {output} > {log} 2>&1'


rule corpus:
    input:
        captions_files,
    output:
        directory(R / "corpus/{split}/{shard}"),
    log:
        R / "logs/corpus/{split}/{shard}.log",
    benchmark:
        R / "timings/corpus/{split}/{shard}.tsv"
    wildcard_constraints:
        split="train|val|text_only",
        shard="[0-9]+",
    resources:
        **asks("small"),
    params:
        settings=lambda w: digest(corpus_settings(w.split)),
        pictures=lambda w: pictures_state(),
        shard=lambda w: int(w.shard),
        files=files_option(),
    shell:
        'prior corpus --preset "$PRESET" --split {wildcards.split} --shard {params.shard} {params.files} '
        "--out {output} > {log} 2>&1"


rule tokens:
    input:
        train=R / "corpus/{split}/{shard}",
        tokenizer=R / "tokenizer",
    output:
        R / "tokens/{split}/{shard}.arrow",
    log:
        R / "logs/tokens/{split}/{shard}.log",
    benchmark:
        R / "timings/tokens/{split}/{shard}.tsv"
    wildcard_constraints:
        split="train|val",
        shard="[0-9]+",
    resources:
        **asks("small"),
    shell:
        "prior tokens --train {input.train} --tokenizer {input.tokenizer} --out {output} > {log} 2>&1"


# A mistake in the scales shows early. Nothing waits for it: scales that change would redo all that does.
rule count:
    input:
        shards("tokens/train/{shard}.arrow"),
    output:
        R / "tokens/train.json",
    log:
        R / "logs/tokens/count.log",
    priority: 100
    resources:
        **asks("small"),
    params:
        largest=preset.scales[-1],
        tokens=R / "tokens/train",
    shell:
        'prior count --preset "$PRESET" --tokens {params.tokens} --out {output} > {log} 2>&1'


rule questions:
    input:
        [preset.tune.conversations.file] if preset.tune and preset.tune.conversations else [],
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
                "conversations": preset.tune and preset.tune.conversations,
                "seed": preset.tune and preset.tune.seed,
            }
        ),
    shell:
        'prior questions --preset "$PRESET" --out {output} > {log} 2>&1'
